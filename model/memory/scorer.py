"""One product's flow and memory, ready for prediction: features to patch maps and image scores."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from moleflow.model.config import ScoringConfig
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.memory.bank import MemoryBank, MergedBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.runtime.parallel import parallel_map
from moleflow.model.verdict.scoring import image_score

__all__ = ["PatchMaps", "ProductParts", "ProductScorer", "Scorer", "image_scores"]


@dataclass(frozen=True, slots=True)
class ProductParts:
    """What a checkpoint stores to score a product; ``bank`` and ``fusion`` as its ``ScoringConfig`` has them."""

    expert: Expert
    bank: MemoryBank | None = None
    fusion: Fusion | None = None

    def to(self, device: torch.device) -> "ProductParts":
        """The same parts, moved to ``device``."""
        for part in (self.expert, self.bank, self.fusion):
            if part is not None:
                part.to(device)
        return self


@dataclass(frozen=True, slots=True)
class PatchMaps:
    """Maps of a batch, ``(B, H, W)`` float32: the flow's ``nll`` in nats, and the ``anomaly`` map.

    The anomaly map is the NLL itself, or dimensionless where the scoring caps it (``moleflow.model.memory.fusion``).
    """

    nll: torch.Tensor
    anomaly: torch.Tensor


class Scorer(Protocol):
    """A product, ready for prediction."""

    def __call__(self, features: PatchFeatures) -> PatchMaps:
        """The maps of a batch."""


def image_scores(maps: PatchMaps, scoring: ScoringConfig, top_k: int) -> torch.Tensor:
    """The score of each image ``(B,)``: the mean of the ``top_k`` highest patches.

    Of the anomaly map with a memory. Of the NLL otherwise: capping makes a map sharper, but cannot tell apart images
    whose highest patches are all saturated.
    """
    return image_score(maps.nll if scoring.memory is None else maps.anomaly, top_k)


class ProductScorer(nn.Module):
    """Features to the maps of one product; on a CPU the images of a batch are computed in parallel.

    Args:
        base: the shared base; read, never changed.
        parts: the product's own; copied.
        dtype: type of the large matrix products.
    """

    def __init__(self, base: Base, parts: ProductParts, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.flow = MergedExpert(base, parts.expert, dtype)
        self.bank = None if parts.bank is None else MergedBank(parts.bank)
        self.fusion = parts.fusion
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, features: PatchFeatures) -> PatchMaps:
        nll, distances = self.raw_maps(features)
        return PatchMaps(nll, nll if self.fusion is None else self.fusion(nll, distances))

    @torch.no_grad()
    def raw_maps(self, features: PatchFeatures) -> tuple[torch.Tensor, torch.Tensor | None]:
        """NLL ``(B, H, W)`` and distances ``(B, kinds, H, W)`` to the memory; no distances without a memory."""
        if features.embeddings.device.type == "cpu" and len(features) > 1:
            found = parallel_map(self.raw_maps, [features.rows(slice(row, row + 1)) for row in range(len(features))])
            distances = [each for _, each in found if each is not None]
            return torch.cat([nll for nll, _ in found]), torch.cat(distances) if distances else None
        nll = self.flow(features.embeddings)
        return nll, None if self.bank is None else self.bank(features.stages)
