"""The router: which learned product is in the picture, by the nearest Gaussian prototype.

A prototype describes a task's image descriptors (mean patch embedding) by a Gaussian whose covariance is
low-rank plus isotropic: mean, ``r`` axes, their ``r`` variances, one floor variance for all other directions.
That keeps the covariance regular with fewer pictures than dimensions, costs O(D·r) a distance and a few tens
of kilobytes a task (method, section 2; probabilistic PCA, Tipping and Bishop 1999).
"""

import torch
from torch import nn

from model.config import RouterConfig

__all__ = ["Prototype", "Router", "image_descriptor"]


def image_descriptor(embeddings: torch.Tensor) -> torch.Tensor:
    """Mean over the grid, before the position code: ``(B, H, W, D)`` to ``(B, D)`` float32."""
    return embeddings.float().mean((1, 2))


class Prototype(nn.Module):
    """One task's Gaussian: ``mean`` (D,), ``axes`` (D, r) orthonormal, ``variances`` (r,), ``floor`` ()."""

    mean: torch.Tensor
    axes: torch.Tensor
    variances: torch.Tensor
    floor: torch.Tensor

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(dim, rank))
        self.register_buffer("variances", torch.ones(rank))
        self.register_buffer("floor", torch.ones(()))

    @classmethod
    def fit(cls, descriptors: torch.Tensor, config: RouterConfig) -> "Prototype":
        """Fit to descriptors ``(n, D)``, ``n ≥ 1``. Deterministic; computed in float64.

        The floor is what the kept axes leave over, shared among the directions that ``n`` pictures can tell
        apart (shared among all D it would be too small, and unseen normal pictures would look foreign), but
        never less than ``relative_floor`` times the mean square of the mean descriptor. A product that hardly
        varies would otherwise reject its own defective pictures, and a product that varies more would win them;
        the default is the median floor that products of ordinary variation reach by themselves.
        """
        count, dim = descriptors.shape
        rank = max(0, min(config.axes, count - 2, dim - 1))
        points = descriptors.double()
        mean = points.mean(0)
        _, singular, directions = torch.linalg.svd(points - mean, full_matrices=False)
        variances = singular.square() / max(count - 1, 1)
        left = variances[rank:].sum() / max(min(count - 1, dim) - rank, 1)
        least = max(config.relative_floor * mean.square().mean().item(), torch.finfo(torch.float32).tiny)
        floor = left.clamp_min(least)
        prototype = cls(dim, rank)
        prototype.mean.copy_(mean)
        prototype.axes.copy_(directions[:rank].T)
        prototype.variances.copy_(torch.maximum(variances[:rank], floor))
        prototype.floor.copy_(floor)
        return prototype


class Router(nn.Module):
    """Distances of image descriptors to all prototypes in a few batched products."""

    mean: torch.Tensor
    whitening: torch.Tensor
    floor_precision: torch.Tensor

    def __init__(self, prototypes: list[Prototype]) -> None:
        super().__init__()
        rank = max((p.axes.shape[1] for p in prototypes), default=0)
        dim = prototypes[0].mean.shape[0] if prototypes else 0
        whitening = torch.zeros(len(prototypes), dim, rank)
        for index, p in enumerate(prototypes):
            # Distance² = ‖d‖²/floor − Σ (aᵢ·d)²·(1/floor − 1/varianceᵢ); unused axes stay zero and count nothing.
            gain = (1 / p.floor - 1 / p.variances).clamp_min(0).sqrt()
            whitening[index, :, : p.axes.shape[1]] = p.axes * gain
        self.register_buffer("mean", torch.stack([p.mean for p in prototypes]) if prototypes else torch.zeros(0, dim))
        self.register_buffer("whitening", whitening)
        self.register_buffer(
            "floor_precision", torch.stack([1 / p.floor for p in prototypes]) if prototypes else torch.zeros(0)
        )

    def forward(self, descriptors: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distances ``(B, T)`` of descriptors ``(B, D)``, in float32."""
        difference = descriptors.float()[None] - self.mean[:, None]  # (T, B, D)
        along = torch.bmm(difference, self.whitening)  # (T, B, r)
        squared = difference.square().sum(-1) * self.floor_precision[:, None] - along.square().sum(-1)
        return squared.clamp_min(0).sqrt().T
