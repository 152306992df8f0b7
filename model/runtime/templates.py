"""One OpenVINO graph for all modules of a structure, whose weights differ.

It is converted once, with the weights as inputs. For a module they become constants, which OpenVINO packs in advance
and whose operators it fuses. Compiling takes ten times as long as packing, so it is done once as well: with random
weights, which are then found in the compiled graph's bytes and replaced by those of a module. The form of these bytes
is OpenVINO's own, so a replacement is tried first. Where a weight cannot be found, because OpenVINO changes it, or the
graph computes something else afterwards, each module is compiled by itself.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from moleflow.model.runtime.conversion import LARGEST_BATCH, compile_options, converted, infer, kept_model
from moleflow.model.runtime.openvino_import import import_openvino

__all__ = ["Template"]

MOST_ROWS = 2**24
"""Of a weight whose number of rows is not part of the structure."""

MARK_BYTES = 16
"""Fewest bytes of a weight that are unique in a compiled graph: random numbers of fewer might be there by chance."""

TRIAL_SCALE = 0.02
"""Of the weights of a trial: small, so that no sum overflows in a deep network."""

TRIAL_TOLERANCE = 1e-4
"""Largest relative difference of the same weights compiled and replaced; two sets of weights differ by far more."""

Weights = Mapping[str, torch.Tensor]

_logger = logging.getLogger(__name__)


class _Exported(NamedTuple):
    """A compiled graph as bytes, and where each weight is in them."""

    graph: bytes
    places: dict[str, list[int]]


class Template:
    """The graph of a structure; thread-safe.

    Args:
        module: any of the structure: tensors to a tensor. Its parameters and buffers are the weights; integers among
            them are permutations.
        inputs: examples of its inputs, whose first axis is the batch.
        counts: weights whose number of rows is not part of the structure, each with the name of that number.
        folder, facts: where the graph is kept, and by what; see ``kept_model``.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[torch.Tensor],
        counts: Mapping[str, str],
        folder: Path,
        facts: Mapping[str, Any],
    ) -> None:
        def convert() -> Any:
            weights = module.state_dict()
            rows = {name: torch.export.Dim(name, min=1, max=MOST_ROWS) for name in sorted(set(counts.values()))}
            batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
            examples = [torch.zeros(value.shape, dtype=value.dtype) for value in weights.values()]
            free = [{0: rows[counts[name]]} if name in counts else None for name in weights]
            return converted(_Function(module), (list(inputs), examples), ([{0: batch}] * len(inputs), free))

        self._examples, self._lock = tuple(inputs), threading.Lock()
        self._model = kept_model(folder, facts, convert)
        self._exported: dict[tuple[torch.Size, ...], _Exported | None] = {}

    def compiled(self, module: nn.Module) -> Any:
        """``module``, compiled."""

        weights = module.state_dict()
        shapes = tuple(value.shape for value in weights.values())
        with self._lock:
            if shapes not in self._exported:
                self._exported[shapes] = self._export(weights)
        exported = self._exported[shapes]
        return self._compiled(weights) if exported is None else self._filled(exported, weights)

    def _compiled(self, weights: Weights) -> Any:
        openvino = import_openvino()

        return openvino.compile_model(self._bound(weights), "CPU", compile_options())

    def _filled(self, exported: _Exported, weights: Weights) -> Any:
        """The compiled graph with these weights in their places."""
        openvino = import_openvino()

        graph = bytearray(exported.graph)
        for name, value in weights.items():
            given = _bytes(value)
            for place in exported.places[name]:
                graph[place : place + len(given)] = given
        return openvino.Core().import_model(bytes(graph), "CPU", compile_options())

    def _bound(self, weights: Weights) -> Any:
        opset13 = import_openvino().opset13

        model = self._model.clone()
        parameters = model.get_parameters()[len(self._examples) :]
        for parameter, value in zip(parameters, weights.values(), strict=True):
            parameter.output(0).replace(opset13.constant(value.contiguous().numpy()).output(0))
            model.remove_parameter(parameter)
        model.validate_nodes_and_infer_types()
        return model

    def _export(self, like: Weights) -> _Exported | None:
        """The graph compiled with random weights; ``None`` if they cannot be replaced in it."""
        generator = torch.Generator().manual_seed(0)
        marks = {name: _mark(value, generator) for name, value in like.items()}
        graph = self._compiled(marks).export_model()
        graph = graph if isinstance(graph, bytes) else graph.getvalue()
        exported = _Exported(graph, {name: _places(graph, _bytes(value)) for name, value in marks.items()})
        if all(exported.places.values()) and self._can_fill(exported, marks, generator):
            return exported
        _logger.info(
            "OpenVINO changes the weights of this graph, so each product is compiled by itself, which is slower."
        )
        return None

    def _can_fill(self, exported: _Exported, marks: Weights, generator: torch.Generator) -> bool:
        """Whether other weights give the same results replaced as compiled."""
        trial = {
            name: TRIAL_SCALE * (value - 1) if value.is_floating_point() else value.flip(0)
            for name, value in marks.items()
        }
        inputs = [torch.rand(each.shape, generator=generator) for each in self._examples]
        wanted, found = (
            infer(each.create_infer_request(), inputs)[0]
            for each in (self._compiled(trial), self._filled(exported, trial))
        )
        scale = float(wanted.abs().max())
        return bool(np.isfinite(scale)) and float((found - wanted).abs().max()) <= TRIAL_TOLERANCE * scale


class _Function(nn.Module):
    """A module as a function of its inputs and weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module, self._names = [module], list(module.state_dict())  # in a list: its weights are not ours

    def forward(self, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(self._module[0], dict(zip(self._names, weights, strict=True)), tuple(inputs))


def _mark(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.is_floating_point():
        return 0.5 + torch.rand(like.shape, generator=generator, dtype=like.dtype)
    return torch.randperm(len(like), generator=generator).to(like.dtype)


def _bytes(value: torch.Tensor) -> bytes:
    return np.ascontiguousarray(value.numpy()).tobytes()


def _places(graph: bytes, mark: bytes) -> list[int]:
    """Where ``mark`` begins in ``graph``; nothing if it is too short to be unique."""
    found: list[int] = []
    start = graph.find(mark) if len(mark) >= MARK_BYTES else -1
    while start >= 0:
        found.append(start)
        start = graph.find(mark, start + len(mark))
    return found
