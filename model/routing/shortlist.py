"""The nearest products of each image, read from the device once: a few of possibly thousands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from moleflow.model.routing.novelty import effective_ratios
from moleflow.model.verdict.results import MAX_CANDIDATES

__all__ = ["Route", "Shortlist", "shortlist"]


@dataclass(frozen=True, slots=True)
class Route:
    """A product's index, and the image's distance and distance ratio to it."""

    index: int
    distance: float
    ratio: float


class Shortlist(NamedTuple):
    """Of one image: the nearest products in order, the product named by the caller, and the smallest effective
    distance ratio over all products (``moleflow.model.routing.novelty.effective_ratios``)."""

    nearest: tuple[Route, ...]
    named: Route | None
    least_ratio: float

    @property
    def task(self) -> Route:
        """The product whose expert scores the image: the named one, else the nearest."""
        return self.named or self.nearest[0]


def shortlist(
    distances: torch.Tensor, ratios: torch.Tensor, median_distances: torch.Tensor, named: Sequence[int | None]
) -> list[Shortlist]:
    """Distances and distance ratios ``(B, T)`` to shortlists, with a single device synchronisation.

    ``median_distances`` ``(T,)`` as for ``effective_ratios``; ``named[i]`` is the product named for image ``i``. Ties
    go to the product learned first.
    """
    count = min(MAX_CANDIDATES, distances.shape[1])
    order = distances.argsort(dim=1, stable=True)[:, :count]
    wanted = torch.tensor([index or 0 for index in named]).to(distances.device, non_blocking=True)[:, None]
    columns = torch.cat((order, wanted), 1)
    least = effective_ratios(distances, ratios, median_distances).amin(1, keepdim=True)
    parts = (columns, distances.gather(1, columns), ratios.gather(1, columns), least)
    table = torch.cat([part.double() for part in parts], 1).tolist()  # float64 holds any index exactly
    found = []
    for row, index in zip(table, named, strict=True):
        indices, distance, ratio = (row[k * (count + 1) : (k + 1) * (count + 1)] for k in range(3))
        *routes, own = map(Route, map(int, indices), distance, ratio)
        found.append(Shortlist(tuple(routes), None if index is None else own, row[-1]))
    return found
