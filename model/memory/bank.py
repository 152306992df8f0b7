"""A product's memory: a coreset of its good patches. The distance to the nearest one tells how new a patch is.

After PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265): the backbone's stages are averaged over 3×3 neighbourhoods,
upsampled to the finest grid and concatenated; then reduced to the principal components of the product's own patches.
Components are not whitened, which would amplify directions of noise.

The projection is linear, so each stage is projected at its own resolution before it is upsampled: exact, and about four
times cheaper.
"""

import functools
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.runtime.onednn import FusedLinear

__all__ = ["STORED_TYPE", "MemoryBank", "MergedBank", "concatenated", "project"]

STORED_TYPE = torch.bfloat16
"""Type in which a memory is stored: half the size, and an error of 2⁻⁹ of a value."""

_AT_ONCE = 196
"""Patches compared at once: their distances to all prototypes then fit into a processor's cache."""


class MemoryBank(nn.Module):
    """A memory as it is stored: ``mean`` ``(C,)`` of the product's patches, principal ``axes`` ``(C, d)``, and
    ``prototypes`` ``(n, d)``, which are projected patches. C is the sum of the stages' channels."""

    mean: torch.Tensor
    axes: torch.Tensor
    prototypes: torch.Tensor

    def __init__(self, channels: int, dim: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, dtype=STORED_TYPE))
        self.register_buffer("axes", torch.zeros(channels, dim, dtype=STORED_TYPE))
        self.register_buffer("prototypes", torch.zeros(count, dim, dtype=STORED_TYPE))

    @classmethod
    def of(cls, mean: torch.Tensor, axes: torch.Tensor, prototypes: torch.Tensor) -> Self:
        """A bank of these values, rounded to the stored type."""
        bank = cls(*axes.shape, len(prototypes))
        bank.load_state_dict({"mean": mean, "axes": axes, "prototypes": prototypes})
        return bank


def project(stages: Sequence[torch.Tensor], mean: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Pooled stages ``(B, H, W, C)``, finest first, to principal components ``(B, H, W, d)`` float32.

    ``mean`` ``(C,)`` and ``axes`` ``(C, d)`` are float32.
    """
    parts = axes.split([stage.shape[-1] for stage in stages])
    grids = upsampled([stage.float() @ part for stage, part in zip(stages, parts, strict=True)])
    return functools.reduce(torch.add, grids) - mean @ axes


def concatenated(stages: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pooled stages ``(B, h, w, C)``, finest first, to patches with all their channels ``(B, H, W, ΣC)`` float32."""
    return torch.cat(upsampled([stage.float() for stage in stages]), -1)


def upsampled(stages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each stage ``(B, h, w, C)`` bilinearly to the grid of the first, ``(B, H, W, C)``."""
    first, *others = stages
    size = first.shape[1:3]
    grids = (
        F.interpolate(stage.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False) for stage in others
    )
    return [first, *(grid.permute(0, 2, 3, 1) for grid in grids)]


class MergedBank(nn.Module):
    """Pooled stages, finest first, to the distance of each patch to the nearest prototype; not trainable.

    Computed in float32 whatever the precision: half precision would round squared norms by more than distances differ.
    """

    mean: torch.Tensor
    axes: torch.Tensor

    def __init__(self, bank: MemoryBank) -> None:
        super().__init__()
        self.register_buffer("mean", bank.mean.float())
        self.register_buffer("axes", bank.axes.float())
        prototypes = bank.prototypes.float()
        # ‖x − p‖² less ‖x‖², which is the same for all prototypes.
        self.compare = FusedLinear(-2 * prototypes, prototypes.square().sum(1), torch.float32)

    @torch.no_grad()
    def forward(self, stages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stages ``(B, H, W, C)`` to distances ``(B, H, W)`` float32."""
        with torch.autocast(stages[0].device.type, enabled=False):
            patches = project(stages, self.mean, self.axes)
            flat = patches.flatten(0, 2)
            least = torch.cat([self.compare(part).amin(1) for part in flat.split(_AT_ONCE)])
            return (least + flat.square().sum(1)).clamp_min_(0).sqrt_().view(patches.shape[:3])
