"""What the router found, as little as is needed of it: of a thousand products an image concerns a few."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from moleflow.model.routing.novelty import effective_ratios
from moleflow.model.verdict.results import MAX_CANDIDATES

__all__ = ["Route", "Shortlist", "shortlist"]


@dataclass(frozen=True, slots=True)
class Route:
    """A product by its index, with the image's distance and ratio."""

    index: int
    distance: float
    ratio: float


class Shortlist(NamedTuple):
    """Of one image: the nearest products in order, the one that was named for it, and the least distance ratio of any
    product, as it counts (``moleflow.model.routing.novelty.effective_ratios``)."""

    nearest: tuple[Route, ...]
    named: Route | None
    least_ratio: float

    @property
    def task(self) -> Route:
        """The product whose expert is asked: the named one, else the nearest."""
        return self.named or self.nearest[0]


def shortlist(
    distances: torch.Tensor, ratios: torch.Tensor, typical: torch.Tensor, named: Sequence[int | None]
) -> list[Shortlist]:
    """Distances and distance ratios ``(B, T)`` to what is said of each image, in one read that waits for the device.

    The least distance ratio is that of all products, ``typical`` as for ``effective_ratios``, found on the device. Of
    products at the same distance the one learned first comes first. ``named[i]`` is the product that image ``i`` is
    said to show.
    """
    count = min(MAX_CANDIDATES, distances.shape[1])
    order = distances.argsort(dim=1, stable=True)[:, :count]
    wanted = torch.tensor([index or 0 for index in named]).to(distances.device, non_blocking=True)[:, None]
    columns = torch.cat((order, wanted), 1)
    # In float64, so that indices of any size pass as they are.
    least = effective_ratios(distances, ratios, typical).amin(1, keepdim=True)
    parts = (columns, distances.gather(1, columns), ratios.gather(1, columns), least)
    table = torch.cat([part.double() for part in parts], 1).tolist()
    found = []
    for row, index in zip(table, named, strict=True):
        indices, near, part = (row[k * (count + 1) : (k + 1) * (count + 1)] for k in range(3))
        *routes, own = map(Route, map(int, indices), near, part)
        found.append(Shortlist(tuple(routes), None if index is None else own, row[-1]))
    return found
