"""The router: the nearest Gaussian prototype is the product; distance ratios tell how sure that is.

**Descriptor.** The channel-wise *median* of an image's patch embeddings. A defect moves a mean in proportion to its
size and strength, but hardly moves a median until half of the image is defective (breakdown point; Huber and Ronchetti
2009, section 1.4).

**Prototype.** A Gaussian over a product's descriptors with a low-rank plus isotropic covariance: mean, ``r`` axes with
their variances, and one floor variance for all other directions. It is well-conditioned with fewer images than
dimensions, and costs O(D·r) per distance and a few tens of kilobytes per task (method, section 2; probabilistic PCA,
Tipping and Bishop 1999).

**Distance ratio.** Linear discriminant analysis (Fisher 1936; Rao 1948) finds the directions that separate products
relative to the variation within a product. The within-product covariance is pooled over all products and includes how
descriptors move under augmentation (``moleflow.training.embeddings.augment``): defects and lighting are variation of
one product. In this whitened discriminant space the ratio for product t is the image's distance to t over the distance
from t to the nearest other product: 0 at t, 1 as far as the next product. All products share one projection, so that a
thousand of them cost little more than their prototypes. ``moleflow.model.routing.novelty`` uses the ratios.
"""

from collections.abc import Sequence

import torch
from torch import nn

from moleflow.model.config import RouterConfig
from moleflow.model.routing.routes import lower_median
from moleflow.model.runtime.kernels import can_run_kernels
from moleflow.model.runtime.parallel import parallel_map

__all__ = ["Prototype", "Router", "image_descriptor"]

_MIN_GAP = 2.5
"""Lower bound of the distance to the nearest other product, in standard deviations per direction. Without it, two
names for the same product would make all its images unknown."""

_MAX_DIRECTIONS = 128
"""Most discriminant directions, those of the largest between-product variance first."""

_CHUNK = 32
"""Products whose covariances are summed in one matrix product."""

_CHANNEL_PARTS = 4
"""Channel chunks per image, so that even a single image keeps several threads busy."""


def image_descriptor(embeddings: torch.Tensor) -> torch.Tensor:
    """Median over the grid, without the position code: ``(B, H, W, D)`` to ``(B, D)`` float32."""
    values = embeddings.detach().float().flatten(1, 2)
    if values.device.type == "cuda" and can_run_kernels(values.device):
        from moleflow.model.routing import kernels  # needs Triton

        return kernels.lower_median(values.contiguous())
    if values.device.type != "cpu":
        return values.median(1).values
    # The same value (the lower median) from NumPy, whose selection is vectorised, in chunks that fit the cache.

    def select(channels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(lower_median(channels.T.contiguous().numpy()))

    pieces = [channels for image in values for channels in image.chunk(_CHANNEL_PARTS, -1)]
    return torch.cat(parallel_map(select, pieces)).view(len(values), -1)


class Prototype(nn.Module):
    """One task's Gaussian: ``mean`` (D,), ``axes`` (D, r) orthonormal, ``variances`` (r,), ``floor`` ().

    ``spread`` (D, s): ``spread @ spread.T`` is the covariance of its descriptors, augmented ones included, which goes
    into the pooled within-product covariance.
    """

    def __init__(self, dim: int, rank: int, spread_axes: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(dim))
        self.axes = nn.Buffer(torch.zeros(dim, rank))
        self.variances = nn.Buffer(torch.ones(rank))
        self.floor = nn.Buffer(torch.ones(()))
        self.spread = nn.Buffer(torch.zeros(dim, spread_axes))

    @classmethod
    def fit(cls, descriptors: torch.Tensor, config: RouterConfig, changes: torch.Tensor | None = None) -> "Prototype":
        """Fit to descriptors ``(n, D)``, ``n ≥ 1``. Deterministic; computed in float64.

        ``changes`` ``(m, D)``: how descriptors move under augmentation; only ``spread`` uses them.

        The floor is the mean variance of the directions without an axis, but at least ``relative_floor`` times the
        mean square of the mean descriptor: unseen images vary in more directions than the few training images do. The
        number of axes and the relative floor were chosen by the likelihood of held-out good images
        (``python -m benchmarks unknown_products``).
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


class Router(nn.Module):
    """Distances of image descriptors to all prototypes, at least one, and distance ratios, in a few batched matrix
    products."""

    def __init__(self, prototypes: Sequence[Prototype]) -> None:
        super().__init__()
        rank, dim = max(p.axes.shape[1] for p in prototypes), len(prototypes[0].mean)
        # Axes in rows are contiguous, which takes a third off the matrix product.
        whitening = torch.zeros(len(prototypes), rank, dim)
        for index, p in enumerate(prototypes):
            # Distance² = ‖d‖²/floor − Σ (aᵢ·d)²·(1/floor − 1/varianceᵢ); padding stays zero and adds nothing.
            gain = (1 / p.floor - 1 / p.variances).clamp_min(0).sqrt()
            whitening[index, : p.axes.shape[1]] = (p.axes * gain).T
        self.mean = nn.Buffer(torch.stack([p.mean for p in prototypes]))
        self.centre = nn.Buffer(self.mean.mean(0))
        self.whitening = nn.Buffer(whitening)
        self.floor_precision = nn.Buffer(torch.stack([1 / p.floor for p in prototypes]))
        self.separating, self.places, self.gaps = map(nn.Buffer, _discriminant(prototypes))

    def forward(self, descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mahalanobis distances and distance ratios, both ``(B, T)`` float32 and dimensionless, of descriptors
        ``(B, D)``. With a single product all ratios are 0."""
        points = descriptors.float()
        difference = points[None] - self.mean[:, None]  # (T, B, D)
        along = torch.bmm(difference, self.whitening.mT)  # (T, B, r)
        squared = difference.square().sum(-1) * self.floor_precision[:, None] - along.square().sum(-1)
        place = (points - self.centre) @ self.separating
        return squared.clamp_min(0).sqrt().T, self.apart(place) / self.gaps

    def apart(self, place: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, T)`` of places ``(B, k)`` in the discriminant space to those of the products."""
        return torch.cdist(place, self.places, compute_mode="donot_use_mm_for_euclid_dist")


def _discriminant(prototypes: Sequence[Prototype]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The projection ``(D, k)`` to the discriminant directions, the projected means ``(T, k)``, and the distance of
    each to the nearest other ``(T,)``.

    Inputs of the projection are centred by the mean of all means; along each direction the images of a product have a
    standard deviation of at most 1. With fewer than two products k is 0.
    """
    count, dim = len(prototypes), len(prototypes[0].mean)
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
