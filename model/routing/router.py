"""The router: which learned product is in the image, by the nearest Gaussian prototype, and whether any is.

The descriptor of an image is the *median* patch embedding, channel by channel: a defect moves a mean as far as it is
large and strange, but a median hardly, until half of the image is defective (its breakdown point; Huber and Ronchetti
2009, section 1.4). A prototype describes a task's descriptors by a Gaussian whose covariance is low-rank plus
isotropic: mean, ``r`` axes, their ``r`` variances, one floor variance for all other directions. That keeps the
covariance regular with fewer images than dimensions, costs O(D·r) a distance and a few tens of kilobytes a task
(method, section 2; probabilistic PCA, Tipping and Bishop 1999).

Whether an image shows an *unknown* product is asked where products differ *and one product's images do not*: linear
discriminant analysis (Fisher 1936; Rao 1948). What the images of one product differ by is learned for all products
together, as the mean of their covariances, and from more than good images: each product brings how its descriptors
move when good images are altered as a defect or another light would alter them
(``moleflow.training.embeddings.augment``). In the metric that this makes even, and in the few directions along which
the products lie apart, the *distance ratio* of an image for product t is its distance from t over that of the nearest
other product: 0 is t itself, 1 as far as the next. One map to these directions serves all products, so that a thousand
of them cost what their prototypes cost. What follows from the distance ratio is ``moleflow.model.routing.novelty``'s to
say.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from moleflow.model.config import RouterConfig
from moleflow.model.runtime.parallel import parallel_map

__all__ = ["Prototype", "Router", "image_descriptor"]

_MIN_GAP = 2.5
"""Least distance to another product that distance ratios are measured by, in standard deviations along each direction:
two names for the same product would otherwise push all its images out of both."""

_MAX_DIRECTIONS = 128
"""Most directions along which products are told apart, those of the widest spread first."""

_CHUNK = 32
"""Products whose covariances are added in one product of matrices."""

_CHANNEL_PARTS = 4
"""Parts of an image's channels whose medians are taken side by side: even one image has work for several threads."""


def image_descriptor(embeddings: torch.Tensor) -> torch.Tensor:
    """Median over the grid, before the position code: ``(B, H, W, D)`` to ``(B, D)`` float32."""
    values = embeddings.detach().float().flatten(1, 2)
    if values.device.type != "cpu":
        return values.median(1).values
    # The same value (the lower one of the two in the middle) from NumPy, whose selection is vectorised; a few channels
    # of one image at a time, which the processor's cache holds.
    middle = (values.shape[1] - 1) // 2

    def select(channels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.partition(channels.T.contiguous().numpy(), middle, axis=1)[:, middle])

    pieces = [channels for image in values for channels in image.chunk(_CHANNEL_PARTS, -1)]
    return torch.cat(parallel_map(select, pieces)).view(len(values), -1)


class Prototype(nn.Module):
    """One task's Gaussian: ``mean`` (D,), ``axes`` (D, r) orthonormal, ``variances`` (r,), ``floor`` ().

    ``spread`` (D, s) is what it adds to the metric of ratios: ``spread @ spread.T`` is the covariance of its images,
    altered ones among them.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    variances: torch.Tensor
    floor: torch.Tensor
    spread: torch.Tensor

    def __init__(self, dim: int, rank: int, spread_axes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(dim, rank))
        self.register_buffer("variances", torch.ones(rank))
        self.register_buffer("floor", torch.ones(()))
        self.register_buffer("spread", torch.zeros(dim, spread_axes))

    @classmethod
    def fit(cls, descriptors: torch.Tensor, config: RouterConfig, changes: torch.Tensor | None = None) -> "Prototype":
        """Fit to descriptors ``(n, D)``, ``n ≥ 1``. Deterministic; computed in float64.

        ``changes`` ``(m, D)`` says how descriptors move when images are altered; only the spread depends on them.

        The floor is the mean variance of the directions without an axis, but never less than ``relative_floor`` times
        the mean square of the mean descriptor: the few images vary in fewer directions than unseen ones do. The
        number of axes and the relative floor were chosen by the likelihood of held-out good images
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
        parts = [(points - mean) / max(count - 1, 1) ** 0.5]
        if changes is not None and len(changes):
            parts.append(changes.double() * (config.change_weight / len(changes)) ** 0.5)
        _, extent, along = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        kept = min(config.spread_axes, len(extent))
        prototype = cls(dim, rank, kept)
        prototype.mean.copy_(mean)
        prototype.axes.copy_(directions[:rank].T)
        prototype.variances.copy_(torch.maximum(variances[:rank], floor))
        prototype.floor.copy_(floor)
        prototype.spread.copy_(along[:kept].T * extent[:kept])
        return prototype

    def whiten(self, differences: torch.Tensor) -> torch.Tensor:
        """Differences ``(n, D)`` from the mean in units of the standard deviation: lengths are then distances."""
        along = differences @ self.axes
        gain = self.variances.rsqrt() - self.floor.rsqrt()
        return differences * self.floor.rsqrt() + (along * gain) @ self.axes.T


class Router(nn.Module):
    """Distances of image descriptors to all prototypes, and their ratios, in a few batched products."""

    mean: torch.Tensor
    centre: torch.Tensor
    whitening: torch.Tensor
    floor_precision: torch.Tensor
    separating: torch.Tensor
    places: torch.Tensor
    gaps: torch.Tensor

    def __init__(self, prototypes: Sequence[Prototype]) -> None:
        super().__init__()
        rank = max((p.axes.shape[1] for p in prototypes), default=0)
        dim = prototypes[0].mean.shape[0] if prototypes else 0
        # Axes in rows: a product reads each from beginning to end, in two thirds of the time.
        whitening = torch.zeros(len(prototypes), rank, dim)
        for index, p in enumerate(prototypes):
            # Distance² = ‖d‖²/floor − Σ (aᵢ·d)²·(1/floor − 1/varianceᵢ); unused axes stay zero and count nothing.
            gain = (1 / p.floor - 1 / p.variances).clamp_min(0).sqrt()
            whitening[index, : p.axes.shape[1]] = (p.axes * gain).T
        self.register_buffer("mean", torch.stack([p.mean for p in prototypes]) if prototypes else torch.zeros(0, dim))
        self.register_buffer("centre", self.mean.mean(0))
        self.register_buffer("whitening", whitening)
        self.register_buffer(
            "floor_precision", torch.stack([1 / p.floor for p in prototypes]) if prototypes else torch.zeros(0)
        )
        separating, places, gaps = _discriminant(prototypes)
        self.register_buffer("separating", separating)
        self.register_buffer("places", places)
        self.register_buffer("gaps", gaps)

    def forward(self, descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mahalanobis distances ``(B, T)`` of descriptors ``(B, D)``, and distance ratios ``(B, T)``, 0 with one
        product.

        Both without unit, in float32.
        """
        points = descriptors.float()
        difference = points[None] - self.mean[:, None]  # (T, B, D)
        along = torch.bmm(difference, self.whitening.mT)  # (T, B, r)
        squared = difference.square().sum(-1) * self.floor_precision[:, None] - along.square().sum(-1)
        place = (points - self.centre) @ self.separating
        apart = torch.cdist(place, self.places, compute_mode="donot_use_mm_for_euclid_dist")
        return squared.clamp_min(0).sqrt().T, apart / self.gaps


def _discriminant(prototypes: Sequence[Prototype]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(D, k)``, ``(T, k)``, ``(T,)``: the map to discriminant directions, the products' places, and their gaps.

    A descriptor less the mean of all means is mapped; along each direction the images of a product have a standard
    deviation of at most 1. A gap is the distance to the nearest other product. With fewer than two products k is 0.
    """
    count, dim = len(prototypes), prototypes[0].mean.shape[0] if prototypes else 0
    if count < 2:
        return torch.zeros(dim, 0), torch.zeros(count, 0), torch.ones(count)
    within = torch.zeros(dim, dim, dtype=torch.float64)
    for start in range(0, count, _CHUNK):
        several = torch.cat([p.spread for p in prototypes[start : start + _CHUNK]], 1).double()
        within += several @ several.T
    points = torch.stack([p.mean for p in prototypes]).double()
    floor = torch.stack([p.floor for p in prototypes]).double().mean()
    variances, axes = torch.linalg.eigh(within / count)
    whitening = (axes * (variances.clamp_min(0) + floor).rsqrt()) @ axes.T  # symmetric
    centred = (points - points.mean(0)) @ whitening
    kept = min(count - 1, dim, _MAX_DIRECTIONS)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -kept:]
    places = centred @ directions
    apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(float("inf"))
    gaps = apart.min(1).values.clamp_min(_MIN_GAP * kept**0.5)
    return (whitening @ directions).float(), places.float(), gaps.float()
