"""The router: which learned product is in the picture, by the nearest Gaussian prototype, and whether any is.

The descriptor of a picture is the *median* patch embedding, channel by channel: a defect moves a mean as far as it is
large and strange, but a median hardly, until half of the picture is defective (its breakdown point; Huber and Ronchetti
2009, section 1.4). A prototype describes a task's descriptors by a Gaussian whose covariance is low-rank plus
isotropic: mean, ``r`` axes, their ``r`` variances, one floor variance for all other directions. That keeps the
covariance regular with fewer pictures than dimensions, costs O(D·r) a distance and a few tens of kilobytes a task
(method, section 2; probabilistic PCA, Tipping and Bishop 1999).

Whether a picture shows an *unknown* product is asked where products differ, as in linear discriminant analysis: in the
metric of product t, and in the few directions that lead from t to the other learned products. There the *share* of a
picture is its distance from t over that of the nearest other product: 0 is t itself, 1 as far as the next. What a
defect does lies mostly across these directions, and what makes another product mostly along them.
"""

import torch
from torch import nn

from model.config import RouterConfig

__all__ = ["FAR_MULTIPLE", "Prototype", "Router", "image_descriptor", "is_outside"]

FAR_MULTIPLE = 5.0
"""How many times as far from a product as its own good pictures, by their median, a picture may be whatever the other
products are: several times what any good one reaches, since a defect can lead out as well. It is all that there is to
go by while a single product is learned."""

_LEAST_GAP = 6.0
"""Least distance to another product that shares are measured by, in standard deviations along each direction to one:
two names for the same product would otherwise push all its pictures out of both."""


def is_outside(distance: float, share: float, typical: float, limit: float) -> bool:
    """Whether a picture lies outside of a product, by its distance and its share.

    ``typical`` is the median distance of the product's good pictures, ``limit`` the share up to which it is inside.
    """
    return share > limit or distance > FAR_MULTIPLE * typical


def image_descriptor(embeddings: torch.Tensor) -> torch.Tensor:
    """Median over the grid, before the position code: ``(B, H, W, D)`` to ``(B, D)`` float32."""
    return embeddings.float().flatten(1, 2).median(1).values


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

        The floor is the mean variance of the directions without an axis, but never less than ``relative_floor`` times
        the mean square of the mean descriptor: the few pictures vary in fewer directions than unseen ones do. The
        number of axes and the relative floor were chosen by the likelihood of held-out good pictures
        (``benchmarks/unknown_products.py``).
        """
        count, dim = descriptors.shape
        rank = max(0, min(config.axes, count - 2, dim - 1))
        points = descriptors.double()
        mean = points.mean(0)
        _, singular, directions = torch.linalg.svd(points - mean, full_matrices=False)
        variances = singular.square() / max(count - 1, 1)
        left = variances[rank:].sum() / (dim - rank)
        least = max(config.relative_floor * mean.square().mean().item(), torch.finfo(torch.float32).tiny)
        floor = left.clamp_min(least)
        prototype = cls(dim, rank)
        prototype.mean.copy_(mean)
        prototype.axes.copy_(directions[:rank].T)
        prototype.variances.copy_(torch.maximum(variances[:rank], floor))
        prototype.floor.copy_(floor)
        return prototype

    def whiten(self, differences: torch.Tensor) -> torch.Tensor:
        """Differences ``(n, D)`` from the mean in units of the standard deviation: lengths are then distances."""
        along = differences @ self.axes
        gain = self.variances.rsqrt() - self.floor.rsqrt()
        return differences * self.floor.rsqrt() + (along * gain) @ self.axes.T


class Router(nn.Module):
    """Distances of image descriptors to all prototypes, and their shares, in a few batched products."""

    mean: torch.Tensor
    whitening: torch.Tensor
    floor_precision: torch.Tensor
    separating: torch.Tensor

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
        self.register_buffer("separating", _separating_directions(prototypes, dim))

    def forward(self, descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mahalanobis distances ``(B, T)`` of descriptors ``(B, D)``, and shares ``(B, T)``, 0 with one product.

        Both without unit, in float32.
        """
        difference = descriptors.float()[None] - self.mean[:, None]  # (T, B, D)
        along = torch.bmm(difference, self.whitening)  # (T, B, r)
        squared = difference.square().sum(-1) * self.floor_precision[:, None] - along.square().sum(-1)
        shares = torch.bmm(difference, self.separating).norm(dim=-1)
        return squared.clamp_min(0).sqrt().T, shares.T


def _separating_directions(prototypes: list[Prototype], dim: int) -> torch.Tensor:
    """``(T, D, T − 1)``: maps a difference from mean t onto the whitened directions to the other means.

    Divided by the distance of the nearest other mean, so that the length of what it gives is the share.
    """
    maps = torch.zeros(len(prototypes), dim, max(len(prototypes) - 1, 0))
    if len(prototypes) < 2:
        return maps
    means = torch.stack([p.mean for p in prototypes])
    for index, p in enumerate(prototypes):
        others = p.whiten(torch.cat((means[:index], means[index + 1 :])) - p.mean)
        gap = others.norm(dim=1).min().clamp_min(_LEAST_GAP * len(others) ** 0.5)
        directions = torch.linalg.svd(others.double(), full_matrices=False).Vh.float()  # (≤ T − 1, D)
        # Whitening is symmetric: to whiten a difference and then look along a direction is one product with this.
        maps[index, :, : len(directions)] = p.whiten(directions).T / gap
    return maps
