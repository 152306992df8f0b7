"""A training step as a CUDA graph: recorded once per batch size and replayed, which takes one launch.

Without, Python and the driver need longer for the several hundred launches of a step than the GPU for its work.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from moleflow.model.errors import describe
from moleflow.model.runtime.faults import is_device_lost, is_out_of_memory

__all__ = ["StepGraph"]

_REHEARSALS = 2
"""Steps before recording, all undone: kernels are compiled, and libraries choose algorithms and allocate, in the first
ones."""

_logger = logging.getLogger(__name__)

Results = tuple[torch.Tensor, torch.Tensor]

Step = Callable[[torch.Tensor], Results]


class StepGraph:
    """Steps, which change ``parameters`` and ``optimizer``, by replay.

    Every step is a replay, also the first one after a restart, so that a continued training has the bits of one that
    never stopped. Where recording fails, steps are taken directly.

    Args:
        parameters: all tensors that the optimizer changes.
        optimizer: one whose state is on the device (``capturable``). Its learning rate is a tensor on the device.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._recordings: dict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, Results]] = {}
        self._works = True

    def __call__(self, step: Step, embeddings: torch.Tensor) -> Results:
        """One step; the results belong to the caller.

        ``step``, the same in every call, takes embeddings ``(B, H, W, D)``, returns two scalars, and changes nothing
        but parameters and optimizer. It is asynchronous, without reads on the host and copies from it.
        """
        if self._works and embeddings.shape not in self._recordings:
            try:
                self._record(step, embeddings)
            except Exception as error:  # anything that cannot be recorded
                if is_device_lost(error) or is_out_of_memory(error):
                    raise
                _logger.warning("Recording a CUDA graph failed; training is slower without: %s", describe(error))
                self._works = False
                self._recordings.clear()
                self._optimizer.zero_grad(set_to_none=True)
        if not self._works:
            return step(embeddings)
        graph, inputs, results = self._recordings[embeddings.shape]
        inputs.copy_(embeddings)
        graph.replay()
        # The next replay, of this graph or of another one in the same memory, overwrites the results.
        loss, nll = (result.clone() for result in results)
        return loss, nll

    def _record(self, step: Step, embeddings: torch.Tensor) -> None:
        # In memory that no recording shares.
        inputs = embeddings.clone(memory_format=torch.contiguous_format)
        current = torch.cuda.current_stream(embeddings.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), self._undone():
                for _ in range(_REHEARSALS):
                    step(inputs)
        finally:
            current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the caller's stream if recording fails. Other threads may allocate meanwhile.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            results = step(inputs)
        self._recordings[embeddings.shape] = graph, inputs, results

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Afterwards, parameters and the optimizer's state have the values of before, in the same tensors."""
        values = [parameter.detach().clone() for parameter in self._parameters]
        states = {
            parameter: {name: value.clone() for name, value in self._optimizer.state[parameter].items()}
            for parameter in self._parameters
            if parameter in self._optimizer.state
        }
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, values, strict=True):
                    parameter.copy_(value)
                    for name, now in self._optimizer.state.get(parameter, {}).items():
                        if parameter in states:
                            now.copy_(states[parameter][name])
                        else:
                            now.zero_()  # its first value
