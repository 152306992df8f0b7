"""The memory without private operators, as a compiler takes it."""

import copy
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.flow.plain import PlainLinear
from moleflow.model.memory.bank import AT_ONCE, MergedBank, Nearest, pool_patches, upsampled

__all__ = ["PlainBank"]


class PlainBank(nn.Module):
    """Stages ``(B, H, W, C)`` float32, finest first, to distances ``(B, kinds, H, W)``, as ``MergedBank``.

    ``channels`` are those of each stage.
    """

    near_pooled: "_PlainNearest | None"

    def __init__(self, bank: MergedBank, channels: Sequence[int]) -> None:
        super().__init__()
        self.axes = nn.ParameterList(nn.Parameter(part.clone(), False) for part in bank.axes.split(list(channels)))
        self.shift = nn.Buffer(-(bank.mean @ bank.axes))
        self.near = _PlainNearest(bank.near)
        # Not as an attribute, which would hide a module of this name in a copy.
        self.register_module("near_pooled", None if bank.near_pooled is None else _PlainNearest(bank.near_pooled))
        self.eval().requires_grad_(False)

    def with_pooled(self, pooled: bool) -> "PlainBank":
        """One of the other structure, for its shapes: with some pooled prototypes, or without."""
        other = copy.copy(self)
        other._modules = {**self._modules, "near_pooled": copy.deepcopy(self.near) if pooled else None}
        return other

    def forward(self, *stages: torch.Tensor) -> torch.Tensor:
        grids = upsampled([stage @ axes for stage, axes in zip(stages, self.axes, strict=True)])
        patches = functools.reduce(torch.add, grids) + self.shift
        distances = self.near(patches)[:, None]
        if self.near_pooled is None:
            return distances
        coarse = self.near_pooled(pool_patches(patches))[:, None]
        fine = F.interpolate(coarse, size=patches.shape[1:3], mode="bilinear", align_corners=False)
        return torch.cat((distances, fine), 1)


class _PlainNearest(nn.Module):
    """Patches ``(B, H, W, d)`` to the distance to the nearest prototype, ``(B, H, W)``."""

    def __init__(self, near: Nearest) -> None:
        super().__init__()
        self.compare = PlainLinear(near.compare)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        flat = patches.flatten(1, 2)
        least = torch.cat([self.compare(part).amin(-1) for part in flat.split(AT_ONCE, 1)], 1)
        return (least + flat.square().sum(-1)).clamp_min(0).sqrt().unflatten(1, patches.shape[1:3])
