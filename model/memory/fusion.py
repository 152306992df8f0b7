"""The fusion of a product's two opinions of each patch into one anomaly map.

1. The flow's NLL becomes a norm, ``f = √max(1, 2·NLL − D·log 2π + 8·D)``: ``‖z‖² − 2·log|det J|``, plus a constant
   that keeps the root real. It is standardised by the patches of held-out good images and capped, ``c·tanh(f / c)``.
   Flows extrapolate explosively: where held-out good patches reach 4 standard deviations, defective ones reach a
   hundred, and upsampling spreads those few over their surroundings.
2. The distance to the memory is standardised likewise.

The anomaly map is ``gate · memory + weight · capped flow``. The *gate* is ``max(0, 1 − 2ρ)``, where ρ is the fraction
of the memory's variance over held-out good images that lies between images. Where whole images differ more than their
patches do, as with fine regular textures, the distance says more about the image than about a defect.
"""

import math
from typing import Self

import torch
from torch import nn

from moleflow.model.config import ScoringConfig

__all__ = ["Fusion", "flow_norm"]

NORM_OFFSET = 8.0
"""Added to the squared norm, per embedding dimension, so that its root is real even where the density is high."""

LEAST_DEVIATION = 1e-6
"""Least standard deviation, for patches that are all alike."""

_STATISTICS = ("flow_mean", "flow_deviation", "memory_mean", "memory_deviation", "gate")


def flow_norm(nll: torch.Tensor, dim: int) -> torch.Tensor:
    """``f`` of the NLL of patches with ``dim`` dimensions; same shape."""
    return (2 * nll - dim * math.log(2 * math.pi) + NORM_OFFSET * dim).clamp_min(1).sqrt()


class Fusion(nn.Module):
    """The statistics of a product's held-out good patches, and the fusion by them; buffers are scalars, float32."""

    flow_mean: torch.Tensor
    flow_deviation: torch.Tensor
    memory_mean: torch.Tensor
    memory_deviation: torch.Tensor
    gate: torch.Tensor

    def __init__(self, config: ScoringConfig, dim: int) -> None:
        super().__init__()
        if config.cap is None:
            raise ValueError("there is nothing to fuse without a cap")
        self._cap, self._weight, self._dim = config.cap, config.flow_weight, dim
        for name in _STATISTICS if config.memory is not None else _STATISTICS[:2]:
            self.register_buffer(name, torch.ones(()))

    @classmethod
    def fit(cls, config: ScoringConfig, dim: int, nll: torch.Tensor, distances: torch.Tensor | None) -> Self:
        """The fusion of a product with these maps ``(n, H, W)`` of held-out good images."""
        fusion = cls(config, dim)
        fusion.flow_mean, fusion.flow_deviation = _moments(flow_norm(nll.float(), dim))
        if distances is not None:
            fusion.memory_mean, fusion.memory_deviation = _moments(distances.float())
            fusion.gate = gate(distances.double()).float()
        return fusion

    def forward(self, nll: torch.Tensor, distances: torch.Tensor | None) -> torch.Tensor:
        """NLL and distance to the memory, ``(B, H, W)`` each, to the anomaly map ``(B, H, W)``, dimensionless."""
        standard = (flow_norm(nll, self._dim) - self.flow_mean) / self.flow_deviation
        # Capped, an infinite likelihood would look like any anomaly; it is a fault and must stay one.
        capped = (self._cap * torch.tanh(standard / self._cap)).masked_fill(~nll.isfinite(), torch.nan)
        if distances is None:
            return capped
        return self.gate * ((distances - self.memory_mean) / self.memory_deviation) + self._weight * capped


def gate(distances: torch.Tensor) -> torch.Tensor:
    """``max(0, 1 − 2ρ)`` of the maps ``(n, H, W)``: ρ is the variance of the images' means over that of all patches."""
    between = distances.mean((1, 2)).var(correction=0)
    return (1 - 2 * between / distances.var(correction=0).clamp_min(LEAST_DEVIATION**2)).clamp_min(0)


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, computed in float64."""
    wide = values.double()
    return wide.mean().float(), wide.std(correction=0).float().clamp_min(LEAST_DEVIATION)
