"""Products scored by OpenVINO: the flow and the memory of each as compiled graphs, on a CPU in float32."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moleflow.model.config import ModelConfig
from moleflow.model.errors import ConfigurationError, describe
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.model.flow.plain import PlainFlow
from moleflow.model.memory.bank import MergedBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.plain import PlainBank
from moleflow.model.memory.scorer import PatchMaps, ProductParts, ProductScorer
from moleflow.model.runtime.conversion import infer
from moleflow.model.runtime.templates import Template

__all__ = ["CompiledScorer", "ScorerCompiler"]

Shape = tuple[int, int, int]
"""Rows, columns and channels of a grid of patches."""


PROTOTYPES = {f"{near}.compare.{name}": near for near in ("near", "near_pooled") for name in ("weight", "bias")}
"""Weights of a memory that have a row for each prototype; products have different numbers of them."""


class CompiledScorer:
    """Features to the maps of one product, as ``ProductScorer``; a batch is computed at once, by all threads.

    ``flow`` and ``bank`` are compiled graphs: embeddings to the NLL, and stages to distances.
    """

    def __init__(self, flow: Any, bank: Any | None, fusion: Fusion | None) -> None:
        self._flow, self._bank, self.fusion = _Graph(flow), None if bank is None else _Graph(bank), fusion

    def __call__(self, features: PatchFeatures) -> PatchMaps:
        nll, distances = self.raw_maps(features)
        return PatchMaps(nll, nll if self.fusion is None else self.fusion(nll, distances))

    def raw_maps(self, features: PatchFeatures) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``ProductScorer.raw_maps``."""
        return self._flow(features.embeddings), None if self._bank is None else self._bank(*features.stages)


class _Graph:
    """A compiled graph with one output. Threads take turns: each call uses all processors."""

    def __init__(self, compiled: Any) -> None:
        self._request, self._lock = compiled.create_infer_request(), threading.Lock()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with self._lock:
            return infer(self._request, inputs)[0]


class ScorerCompiler:
    """Compiles the products of a checkpoint; thread-safe.

    Args:
        config: the checkpoint's.
        grids: shapes of the embeddings, and of the stages.
        folder: where converted graphs are kept.
    """

    def __init__(self, config: ModelConfig, grids: Sequence[Shape], folder: Path) -> None:
        self._config, self._folder = config, folder
        self._embeddings, *self._stages = (torch.zeros(2, *grid) for grid in grids)
        self._templates: dict[str, Template] = {}
        self._lock = threading.Lock()

    def __call__(self, base: Base, parts: ProductParts) -> CompiledScorer:
        """A product, compiled.

        Raises:
            ConfigurationError: OpenVINO cannot convert or compile it.
        """
        scorer = ProductScorer(base, parts)
        try:
            module = PlainFlow(scorer.flow, self._config.backbone.embedding_dim)
            flow = self._template("flow", module, [self._embeddings]).compiled(module)
            return CompiledScorer(flow, None if scorer.bank is None else self._bank(scorer.bank), parts.fusion)
        except Exception as error:  # of exporting, converting or compiling, which can raise anything
            raise ConfigurationError(
                f"OpenVINO cannot run the flow or the memory of a product ({describe(error)}); use engine torch."
            ) from error

    def _bank(self, merged: MergedBank) -> Any:
        bank = PlainBank(merged, [stage.shape[-1] for stage in self._stages])
        memory = self._config.scoring.memory
        if memory is not None and memory.pooled:
            # Products with and without pooled patches: both now, since a conversion would make a later request slow.
            self._template("memory", bank.with_pooled(merged.near_pooled is None), self._stages)
        return self._template("memory", bank, self._stages).compiled(bank)

    def _template(self, part: str, module: nn.Module, inputs: Sequence[torch.Tensor]) -> Template:
        """The graph of the module's structure."""
        counts = {name: count for name, count in PROTOTYPES.items() if name in module.state_dict()}
        weights = {name: list(value.shape)[name in counts :] for name, value in module.state_dict().items()}
        facts = {
            "part": part,
            "flow": self._config.flow.model_dump(),
            "inputs": [list(each.shape[1:]) for each in inputs],
            "weights": weights,
        }
        with self._lock:
            key = str(facts)
            if key not in self._templates:
                self._templates[key] = Template(module, inputs, counts, self._folder, facts)
            return self._templates[key]
