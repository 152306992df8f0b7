"""CUDA graphs: a function of tensors recorded once per batch size and replayed, which takes one launch.

Without, Python and the driver need longer for the several hundred launches of a prediction than the GPU for its work.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from moleflow.model.errors import describe
from moleflow.model.runtime.faults import is_device_lost, is_out_of_memory
from moleflow.model.runtime.kernels import on_device

__all__ = ["BATCH_SIZES", "Captured"]

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that are recorded. A batch is padded to the next one, and divided if it is larger than the last."""

_WARM_UPS = 2
"""Calls before recording: libraries choose algorithms and allocate workspaces in the first ones."""

_logger = logging.getLogger(__name__)

Function = Callable[..., tuple[torch.Tensor, ...]]


class Captured:
    """``function`` of tensors whose first dimension is the batch, and whose results have it too.

    Each image's results must depend on its own inputs only. On a device without CUDA, and where recording fails, the
    function is called directly. Thread-safe; results belong to the caller.

    Args:
        function: asynchronous; no reads on the host and no copies from it.
        device: where its inputs are.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self._function, self._device, self._lock = function, device, threading.Lock()
        self._works = device.type == "cuda" and torch.cuda.is_available()
        self._recordings: dict[object, _Recording] = {}
        self._pool: Any = None  # PyTorch's type of it is private

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The function's results for inputs of any batch size, at least 1."""
        if not self._works:
            return self._function(*inputs)
        parts = zip(*(each.split(BATCH_SIZES[-1]) for each in inputs), strict=True)
        with self._lock, on_device(self._device), torch.inference_mode():
            found = [self._replay(part) for part in parts]
        return found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found, strict=True)))

    def sizes(self, most: int) -> list[int]:
        """Batch sizes to call it with once, so that no batch of up to ``most`` images has to be recorded later."""
        if not self._works:
            return [most]
        padded = BATCH_SIZES[min(bisect_left(BATCH_SIZES, most), len(BATCH_SIZES) - 1)]
        return [size for size in BATCH_SIZES if size <= padded]

    def clear(self) -> None:
        """Free the recordings and their memory; they are made again on demand."""
        with self._lock:
            self._recordings.clear()
            self._pool = None

    def _replay(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if not self._works:
            return self._function(*inputs)
        size = BATCH_SIZES[bisect_left(BATCH_SIZES, len(inputs[0]))]
        key = size, *((each.dtype, each.shape[1:]) for each in inputs)
        recording = self._recordings.get(key)
        if recording is None:
            try:
                recording = self._recordings[key] = self._record(inputs, size)
            except Exception as error:
                if is_out_of_memory(error) or is_device_lost(error):
                    raise
                _logger.warning("Recording a CUDA graph failed; prediction is slower without: %s", describe(error))
                self._works = False
                return self._function(*inputs)
        return recording.replay(inputs)

    def _record(self, inputs: tuple[torch.Tensor, ...], size: int) -> "_Recording":
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return _Recording(self._function, inputs, size, self._pool)


class _Recording:
    """The function recorded for one batch size, with tensors of its own for inputs and results."""

    def __init__(self, function: Function, inputs: tuple[torch.Tensor, ...], size: int, pool: Any) -> None:
        # Rows beyond the batch repeat its first image, so that every value is valid.
        self._inputs = [each[torch.zeros(size, dtype=torch.long, device=each.device)] for each in inputs]
        stream = torch.cuda.Stream(device=inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function(*self._inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._results = function(*self._inputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        count = len(inputs[0])
        for own, given in zip(self._inputs, inputs, strict=True):
            own[:count].copy_(given)
        self._graph.replay()
        # The next replay, of this graph or of another one in the same memory, overwrites the results.
        return tuple(result[:count].clone() for result in self._results)
