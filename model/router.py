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

A thousand products cost what their prototypes cost. All distances are one batched product. The differences from one
mean to all others span the same k ≤ min(T − 1, D) directions U whichever mean they start from, so that no product
needs directions of its own: with the precision P = f·I − A Aᵀ of product t, the squared length of the part of its
whitened difference d that lies in the whitened span is ‖(Uᵀ P U)^-½ Uᵀ P d‖², where Uᵀ P U = f·I − B Bᵀ with B = Uᵀ A
is inverted in its r dimensions (Woodbury). With as many directions as there are dimensions that is d's whole length.
"""

from collections.abc import Sequence

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

_LEAST_SPREAD = 1e-5
"""Directions along which the means of the products spread less than this, as a share of the widest, lead nowhere."""

_CHUNK = 64
"""Products whose distances to all others are computed at once."""


def is_outside(distance: torch.Tensor, share: torch.Tensor, typical: torch.Tensor, limit: float) -> torch.Tensor:
    """Whether pictures lie outside of products, by distances and shares ``(…, T)``.

    ``typical`` ``(T,)`` is the median distance of each product's good pictures, ``limit`` the share up to which a
    picture is inside.
    """
    return (share > limit) | (distance > FAR_MULTIPLE * typical)


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
    gap: torch.Tensor
    centre: torch.Tensor
    span: torch.Tensor | None
    mean_along_span: torch.Tensor
    along_span: torch.Tensor
    inverse_root: torch.Tensor

    def __init__(self, prototypes: Sequence[Prototype]) -> None:
        super().__init__()
        rank = max((p.axes.shape[1] for p in prototypes), default=0)
        dim = prototypes[0].mean.shape[0] if prototypes else 0
        whitening = torch.zeros(len(prototypes), dim, rank)
        for index, p in enumerate(prototypes):
            # Distance² = ‖d‖²/floor − Σ (aᵢ·d)²·(1/floor − 1/varianceᵢ); unused axes stay zero and count nothing.
            gain = (1 / p.floor - 1 / p.variances).clamp_min(0).sqrt()
            whitening[index, :, : p.axes.shape[1]] = p.axes * gain
        mean = torch.stack([p.mean for p in prototypes]) if prototypes else torch.zeros(0, dim)
        precision = torch.stack([1 / p.floor for p in prototypes]) if prototypes else torch.zeros(0)
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)
        self.register_buffer("floor_precision", precision)
        span = _spanned(mean) if 1 < len(prototypes) <= dim else None
        self.register_buffer("span", span)
        if span is not None:
            self.register_buffer("centre", mean.mean(0))
            self.register_buffer("mean_along_span", (mean - mean.mean(0)) @ span)
            along_span = span.T @ whitening
            self.register_buffer("along_span", along_span)
            self.register_buffer("inverse_root", _inverse_root(along_span, precision))
        least = _LEAST_GAP * max(min(len(prototypes) - 1, dim), 1) ** 0.5
        self.register_buffer("gap", _gaps(mean, whitening, precision).clamp_min(least))

    def forward(self, descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mahalanobis distances ``(B, T)`` of descriptors ``(B, D)``, and shares ``(B, T)``, 0 with one product.

        Both without unit, in float32.
        """
        difference = descriptors.float()[None] - self.mean[:, None]  # (T, B, D)
        along = torch.bmm(difference, self.whitening)  # (T, B, r)
        precision = self.floor_precision[:, None]
        squared = difference.square().sum(-1) * precision - along.square().sum(-1)
        if self.span is not None:
            # v = Uᵀ P d; then its squared length in the metric (f·I − B Bᵀ)^-1 = (I + B L Lᵀ Bᵀ) / f.
            u = (descriptors.float() - self.centre) @ self.span - self.mean_along_span[:, None]  # (T, B, k)
            v = precision[..., None] * u - torch.bmm(along, self.along_span.mT)
            inner = torch.bmm(torch.bmm(v, self.along_span), self.inverse_root)
            within = (v.square().sum(-1) + inner.square().sum(-1)) / precision
        else:
            within = squared
        shares = within.clamp_min(0).sqrt() / self.gap[:, None]
        return squared.clamp_min(0).sqrt().T, shares.T


def _spanned(mean: torch.Tensor) -> torch.Tensor:
    """Orthonormal directions ``(D, T − 1)`` that lead from any of the means ``(T, D)`` to all others;
    a direction that they hardly differ in is zero."""
    _, spread, directions = torch.linalg.svd((mean - mean.mean(0)).double(), full_matrices=False)
    leads = spread > _LEAST_SPREAD * spread[0]
    return (directions * leads[:, None])[: len(mean) - 1].T.float().contiguous()


def _inverse_root(along_span: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """For each product a root ``(T, r, r)`` of the inverse of ``f·I − Bᵀ B``; ``along_span`` is ``B`` ``(T, k, r)``."""
    inner = along_span.double()
    identity = torch.eye(inner.shape[-1], dtype=torch.float64)
    # f exceeds every eigenvalue of Bᵀ B, since those of Aᵀ A are f − 1/variance.
    factor = torch.linalg.cholesky(precision.double()[:, None, None] * identity - inner.mT @ inner)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).mT.float()


def _gaps(mean: torch.Tensor, whitening: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """``(T,)``: the distance from each mean to the nearest other, in the metric of the former; infinite without."""
    centred = (mean - mean.mean(0)) if len(mean) else mean
    wide = centred.double()
    lengths = wide.square().sum(1)
    gaps = torch.empty(len(mean))
    for part in torch.arange(len(mean)).split(_CHUNK):
        along = centred @ whitening[part] - torch.bmm(centred[part, None], whitening[part])  # (n, T, r)
        apart = (lengths[part, None] + lengths - 2 * wide[part] @ wide.T).float()
        squared = precision[part, None] * apart - along.square().sum(-1)
        squared[torch.arange(len(part)), part] = torch.inf
        gaps[part] = squared.min(1).values.clamp_min(0).sqrt()
    return gaps
