"""The nearest products of each image, read from the device once: a few of possibly thousands."""

from collections.abc import Sequence

import torch

from moleflow.model.routing.novelty import FAR_MULTIPLE
from moleflow.model.routing.routes import Shortlist, read_table
from moleflow.model.verdict.results import MAX_CANDIDATES

__all__ = ["effective_ratios", "shortlist"]


def effective_ratios(distance: torch.Tensor, ratio: torch.Tensor, median_distance: torch.Tensor) -> torch.Tensor:
    """Distance ratios, raised to at least 1 for products that the image is far from.

    Distances and distance ratios are ``(…, T)``; ``median_distance`` ``(T,)`` is that of each product's held-out good
    images.
    """
    return torch.where(distance > FAR_MULTIPLE * median_distance, ratio.clamp_min(1), ratio)


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
    # float64 holds any index exactly
    return read_table(torch.cat([part.double() for part in parts], 1).tolist(), named)
