"""Graphs that OpenVINO computes on a CPU in float32."""

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np

from moleflow.model.errors import CheckpointFormatError, ConfigurationError, describe
from moleflow.model.exported.folder import ExportedFolder
from moleflow.model.runtime.openvino_import import import_openvino

__all__ = ["Graph", "Graphs", "round_to_bfloat16"]


class Graph:
    """One compiled graph; thread-safe."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._local: Any = threading.local()

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The graph's results for its inputs, both in its order; new arrays."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        found = self._local.request.infer(dict(enumerate(inputs)), share_inputs=True)
        return [found[output] for output in self._compiled.outputs]


class Graphs:
    """Compiles the graphs of a folder.

    Args:
        folder: the opened folder.
        threads: threads per graph.
        cache: where compiled graphs are kept for the next start; OpenVINO tells them apart by their contents.

    Raises:
        ConfigurationError: OpenVINO is not installed.
    """

    def __init__(self, folder: ExportedFolder, threads: int, cache: Path) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise ConfigurationError(
                f"{str(folder.path)!r} is an exported folder, which OpenVINO computes, and that is not installed; run "
                "pip install 'moleflow[openvino]'."
            )
        openvino = import_openvino()

        self._folder, self._core = folder, openvino.Core()
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._cache = str(cache)

    def compiled(self, name: str, *, keep: bool) -> Graph:
        """The graph called ``name``, verified; ``keep`` the result in the cache.

        Raises:
            CheckpointDigestError, CheckpointFormatError: its files are damaged, or OpenVINO cannot compile them.
        """
        description, *weights = self._folder.graph(name)
        options = self._options | ({"CACHE_DIR": self._cache} if keep else {})
        try:
            network = self._core.read_model(description, *(weights or [b""]))
            return Graph(self._core.compile_model(network, "CPU", options))
        except Exception as error:  # RuntimeError, and what its bindings raise for other input
            raise CheckpointFormatError(
                f"OpenVINO cannot compile {name!r} of {str(self._folder.path)!r} ({describe(error)}); install the "
                "newest OpenVINO, or export the checkpoint again."
            ) from error


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Finite float32 values rounded to the nearest bfloat16, ties to even, as float32; changes ``values``."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF0000)
    return values
