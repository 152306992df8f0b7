"""The fusion of a product's two opinions of each patch into one anomaly map.

1. The flow's NLL becomes a norm, ``f = √max(1, 2·NLL − D·log 2π + 8·D)``: ``‖z‖² − 2·log|det J|``, plus a constant
   that keeps the root real. It is standardised by the patches of held-out good images and capped, ``c·tanh(f / c)``.
   Flows extrapolate explosively: where held-out good patches reach 4 standard deviations, defective ones reach a
   hundred, and upsampling spreads those few over their surroundings.
2. The distance to the memory is standardised likewise.

The anomaly map is ``gate · memory + weight · capped flow``. The *gate* is ``max(0, 1 − 2ρ)``, where ρ is the fraction
of the memory's variance over held-out good images that lies between images. Where whole images differ more than their
patches do, as with fine regular textures, the distance says more about the image than about a defect.

3. The distance to the *pooled* patches of the memory is standardised likewise and added with half of its own gate, on
   *flat* surfaces: times ``max(0, 1 − 2π)``, where π is the fraction of the memory's variance within good images that
   the position explains. An object has parts at places, and pooling blurs their edges (π is 0.8 on bottle); a surface
   has none (0.02 on magnetic_tile). Where the product is 0, pooled patches are not stored.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import nn

from moleflow.model.config import ScoringConfig

__all__ = ["Fusion", "flow_norm", "fuse"]

NORM_OFFSET = 8.0
"""Added to the squared norm, per embedding dimension, so that its root is real even where the density is high."""

LEAST_DEVIATION = 1e-6
"""Least standard deviation, for patches that are all alike."""

POOLED_WEIGHT = 0.5
"""Weight of the distance to pooled patches on a flat surface, relative to the memory's."""


_OF_MEMORY = ("memory_mean", "memory_deviation", "gate")
"""Buffers with an entry for each kind of prototypes."""


def flow_norm(nll: torch.Tensor, dim: int) -> torch.Tensor:
    """``f`` of the NLL of patches with ``dim`` dimensions; same shape."""
    return (2 * nll - dim * math.log(2 * math.pi) + NORM_OFFSET * dim).clamp_min(1).sqrt()


class Constants(NamedTuple):
    """Of all products: the cap, the weight of the capped flow, and the embedding's dimension."""

    cap: float
    flow_weight: float
    dim: int


class Fusion(nn.Module):
    """The statistics of a product's held-out good patches, and the fusion by them, float32.

    ``flow_mean`` and ``flow_deviation`` are scalars. ``memory_mean``, ``memory_deviation`` and ``gate`` have an entry
    for each kind of prototypes: ``kinds`` is 1, or 2 with pooled patches, whose gate includes their weight.
    """

    flow_mean: torch.Tensor
    flow_deviation: torch.Tensor
    memory_mean: torch.Tensor
    memory_deviation: torch.Tensor
    gate: torch.Tensor

    def __init__(self, config: ScoringConfig, dim: int, kinds: int = 1) -> None:
        super().__init__()
        if config.cap is None:
            raise ValueError("there is nothing to fuse without a cap")
        self.constants = Constants(config.cap, config.flow_weight, dim)
        for name in ("flow_mean", "flow_deviation"):
            self.register_buffer(name, torch.ones(()))
        if config.memory is not None:
            for name in _OF_MEMORY:
                self.register_buffer(name, torch.ones(kinds))

    @classmethod
    def fit(cls, config: ScoringConfig, dim: int, nll: torch.Tensor, distances: torch.Tensor | None) -> Self:
        """The fusion of a product with these maps of held-out good images: ``nll`` ``(n, H, W)``, and ``distances``
        ``(n, kinds, H, W)`` to the memory, if any."""
        kinds = 1 if distances is None else distances.shape[1]
        fusion = cls(config, dim, kinds)
        fusion.flow_mean, fusion.flow_deviation = _moments(flow_norm(nll.float(), dim))
        if distances is not None:
            wide = distances.double()
            moments = [_moments(wide[:, kind]) for kind in range(kinds)]
            fusion.memory_mean, fusion.memory_deviation = (torch.stack(each) for each in zip(*moments, strict=True))
            gates = torch.stack([gate(wide[:, kind]) for kind in range(kinds)])
            gates[1:] *= POOLED_WEIGHT * flatness(wide[:, 0])
            fusion.gate = gates.float()
        return fusion

    def without_pooled(self) -> Self:
        """The same fusion where pooled patches have no weight, for a memory without them."""
        other = copy.deepcopy(self)
        for name in _OF_MEMORY:
            setattr(other, name, getattr(self, name)[:1].clone())
        return other

    def forward(self, nll: torch.Tensor, distances: torch.Tensor | None) -> torch.Tensor:
        """NLL ``(B, H, W)`` and distances ``(B, kinds, H, W)`` to the anomaly map ``(B, H, W)``, dimensionless."""
        memory = () if distances is None else (getattr(self, name)[:, None, None] for name in _OF_MEMORY)
        return fuse(nll, distances, (self.flow_mean, self.flow_deviation), tuple(memory), self.constants)


def fuse(
    nll: torch.Tensor,
    distances: torch.Tensor | None,
    flow: Sequence[torch.Tensor],
    memory: Sequence[torch.Tensor],
    constants: Constants,
) -> torch.Tensor:
    """The anomaly map ``(B, H, W)`` of NLL ``(B, H, W)`` and distances ``(B, kinds, H, W)``.

    ``flow`` are mean and deviation, ``memory`` mean, deviation and gate, each of a shape that fits by broadcasting.
    """
    mean, deviation = flow
    standard = (flow_norm(nll, constants.dim) - mean) / deviation
    # Capped, an infinite likelihood would look like any anomaly; it is a fault and must stay one.
    capped = (constants.cap * torch.tanh(standard / constants.cap)).masked_fill(~nll.isfinite(), torch.nan)
    if distances is None:
        return capped
    mean, deviation, gate = memory
    return ((distances - mean) * (gate / deviation)).sum(1) + constants.flow_weight * capped


def gate(distances: torch.Tensor) -> torch.Tensor:
    """``max(0, 1 − 2ρ)`` of the maps ``(n, H, W)``: ρ is the variance of the images' means over that of all patches."""
    between = distances.mean((1, 2)).var(correction=0)
    return _remaining(between / distances.var(correction=0).clamp_min(LEAST_DEVIATION**2))


def flatness(distances: torch.Tensor) -> torch.Tensor:
    """``max(0, 1 − 2π)`` of the maps ``(n, H, W)``: π is the fraction of the variance within images that the position
    explains, less what chance would."""
    within = distances - distances.mean((1, 2), keepdim=True)
    total = within.var(correction=0).clamp_min(LEAST_DEVIATION**2)
    return _remaining(within.mean(0).var(correction=0) / total - 1 / len(distances))


def _remaining(fraction: torch.Tensor) -> torch.Tensor:
    return (1 - 2 * fraction).clamp(0, 1)


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, computed in float64."""
    wide = values.double()
    return wide.mean().float(), wide.std(correction=0).float().clamp_min(LEAST_DEVIATION)
