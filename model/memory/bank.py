"""A product's memory: a coreset of its good patches. The distance to the nearest one tells how new a patch is.

After PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265): the backbone's stages are averaged over 3×3 neighbourhoods,
upsampled to the finest grid and concatenated; then reduced to the principal components of the product's own patches.
Components are not whitened, which would amplify directions of noise.

The projection is linear, so each stage is projected at its own resolution before it is upsampled: exact, and about four
times cheaper.

A second set of prototypes holds *pooled* patches, means over a neighbourhood, on every second row and column. Their
distance finds what is large and faint on a flat surface (``moleflow.model.memory.fusion``).
"""

import functools
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.runtime.fused import FusedLinear

__all__ = [
    "AT_ONCE",
    "POOLED_STRIDE",
    "STORED_TYPE",
    "MemoryBank",
    "MergedBank",
    "Nearest",
    "concatenated",
    "pool_patches",
    "project",
]

STORED_TYPE = torch.bfloat16
"""Type in which a memory is stored: half the size, and an error of 2⁻⁹ of a value."""

POOLING, POOLED_STRIDE = 5, 2
"""Side of the neighbourhoods of pooled patches, and their distance (docs/results/scoring.md)."""

AT_ONCE = 196
"""Patches compared at once: their distances to all prototypes then fit into a processor's cache."""


class MemoryBank(nn.Module):
    """A memory as it is stored: ``mean`` ``(C,)`` of the product's patches, principal ``axes`` ``(C, d)``, and
    ``prototypes`` ``(n, d)`` and ``pooled`` ``(m, d)``, which are projected patches; m may be 0. C is the sum of the
    stages' channels."""

    def __init__(self, channels: int, dim: int, count: int, pooled: int = 0) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(channels, dtype=STORED_TYPE))
        self.axes = nn.Buffer(torch.zeros(channels, dim, dtype=STORED_TYPE))
        self.prototypes = nn.Buffer(torch.zeros(count, dim, dtype=STORED_TYPE))
        self.pooled = nn.Buffer(torch.zeros(pooled, dim, dtype=STORED_TYPE))

    @classmethod
    def of(
        cls, mean: torch.Tensor, axes: torch.Tensor, prototypes: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> Self:
        """A bank of these values, rounded to the stored type."""
        channels, dim = axes.shape
        pooled = torch.zeros(0, dim) if pooled is None else pooled
        bank = cls(channels, dim, len(prototypes), len(pooled))
        bank.load_state_dict({"mean": mean, "axes": axes, "prototypes": prototypes, "pooled": pooled})
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


def pool_patches(patches: torch.Tensor) -> torch.Tensor:
    """Means of projected patches over ``POOLING`` × ``POOLING`` neighbourhoods, on every second row and column:
    ``(B, H, W, d)`` to ``(B, ⌈H/2⌉, ⌈W/2⌉, d)``."""
    grid = patches.permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(grid, POOLING, POOLED_STRIDE, POOLING // 2, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1)


class MergedBank(nn.Module):
    """Pooled stages, finest first, to the distance of each patch to the nearest prototype of each kind; not trainable.

    Computed in float32 whatever the precision: half precision would round squared norms by more than distances differ.
    """

    def __init__(self, bank: MemoryBank) -> None:
        super().__init__()
        self.mean = nn.Buffer(bank.mean.float())
        self.axes = nn.Buffer(bank.axes.float())
        self.near = Nearest(bank.prototypes)
        self.near_pooled = Nearest(bank.pooled) if len(bank.pooled) else None

    @torch.no_grad()
    def forward(self, stages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stages ``(B, H, W, C)`` to distances ``(B, 1, H, W)`` float32, or ``(B, 2, H, W)`` with pooled patches."""
        with torch.autocast(stages[0].device.type, enabled=False):
            patches = project(stages, self.mean, self.axes)
            distances = self.near(patches)[:, None]
            if self.near_pooled is None:
                return distances
            coarse = self.near_pooled(pool_patches(patches))[:, None]
            size = patches.shape[1:3]
            fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
            return torch.cat((distances, fine), 1)


class Nearest(nn.Module):
    """Patches ``(B, H, W, d)`` to the distance to the nearest prototype, ``(B, H, W)``."""

    def __init__(self, prototypes: torch.Tensor) -> None:
        super().__init__()
        values = prototypes.float()
        # ‖x − p‖² less ‖x‖², which is the same for all prototypes.
        self.compare = FusedLinear(-2 * values, values.square().sum(1), torch.float32)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        flat = patches.flatten(0, 2)
        least = torch.cat([self.compare(part).amin(1) for part in flat.split(AT_ONCE)])
        return (least + flat.square().sum(1)).clamp_min_(0).sqrt_().view(patches.shape[:3])
