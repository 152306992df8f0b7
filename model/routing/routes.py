"""The nearest products of each image, a few of possibly thousands, in NumPy; ``shortlist`` does it on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moleflow.model.routing.novelty import FAR_MULTIPLE
from moleflow.model.verdict.results import MAX_CANDIDATES

__all__ = ["Route", "Shortlist", "lower_median", "nearest_products", "read_table"]


@dataclass(frozen=True, slots=True)
class Route:
    """A product's index, and the image's distance and distance ratio to it."""

    index: int
    distance: float
    ratio: float


class Shortlist(NamedTuple):
    """Of one image: the nearest products in order, the product named by the caller, and the smallest effective
    distance ratio over all products (``moleflow.model.routing.shortlist.effective_ratios``)."""

    nearest: tuple[Route, ...]
    named: Route | None
    least_ratio: float

    @property
    def task(self) -> Route:
        """The product whose expert scores the image: the named one, else the nearest."""
        return self.named or self.nearest[0]


def nearest_products(
    distances: np.ndarray, ratios: np.ndarray, median_distances: np.ndarray, named: Sequence[int | None]
) -> list[Shortlist]:
    """Distances and distance ratios ``(B, T)`` float32 to shortlists; arguments as for
    ``moleflow.model.routing.shortlist.shortlist``, with the same result."""
    count = min(MAX_CANDIDATES, distances.shape[1])
    wanted = np.array([index or 0 for index in named])[:, None]
    columns = np.concatenate((distances.argsort(1, kind="stable")[:, :count], wanted), 1)
    far = distances > np.float32(FAR_MULTIPLE) * median_distances
    least = np.where(far, np.maximum(ratios, 1), ratios).min(1, keepdims=True)
    parts = (columns, np.take_along_axis(distances, columns, 1), np.take_along_axis(ratios, columns, 1), least)
    return read_table(np.concatenate([part.astype(np.float64) for part in parts], 1).tolist(), named)


def read_table(table: Sequence[Sequence[float]], named: Sequence[int | None]) -> list[Shortlist]:
    """Shortlists from a row for each image: the indices of its nearest products and of the named one (any, if there is
    none), their distances, their ratios, and the least ratio."""
    found = []
    for row, index in zip(table, named, strict=True):
        width = len(row) // 3
        indices, distance, ratio = (row[k * width : (k + 1) * width] for k in range(3))
        *routes, own = map(Route, map(int, indices), distance, ratio)
        found.append(Shortlist(tuple(routes), None if index is None else own, row[-1]))
    return found


def lower_median(values: np.ndarray) -> np.ndarray:
    """The lower of the two middle values along the last axis of ``(…, n)``; contiguous rows are fastest."""
    middle = (values.shape[-1] - 1) // 2
    return np.partition(values, middle, axis=-1)[..., middle]
