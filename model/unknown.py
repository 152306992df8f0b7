"""Whether a picture shows a product that was never learned: the router's opinion, and the expert's.

The router sees one descriptor of the whole picture. Its *share* for a product says how far the picture leads to the
other products (``model.router``), and tells what is far from everything learned; of look-alikes, and among products
that lie far apart themselves, it is not sure. The nearest product's expert has seen more. In a defective picture of its
product most patches still look as they should, so its calmest tenth hardly changes; in a picture of anything else no
patch does. The *excess* is how much less likely that calmest tenth is than in good pictures of the product that the
expert was not fitted to. The *strangeness* of a picture is its share, raised by the excess; beyond the limit the
picture is of an unknown product. Since the excess never lowers it, a picture whose share alone is beyond the limit is
refused without asking an expert.

Products far apart, or a single one, leave room that no share tells of: a share counts as 1, the next product's place,
where the picture is many times as far from the product as its own good pictures are.
"""

import math

import numpy as np
import torch

from model.config import DEFAULT_UNKNOWN_LIMIT
from model.errors import ConfigurationError

__all__ = ["FAR_MULTIPLE", "check_limit", "counted_shares", "ground_level", "strangeness"]

FAR_MULTIPLE = 5.0
"""How many times as far from a product as its own good pictures, by their median, is far: several times what any good
one reaches, since a defect can lead out as well. It is all that there is to go by while a single product is learned."""

GROUND_QUANTILE = 0.1
"""Share of a picture's patches that its ground level is not below: few enough to be found beside a large defect."""

EXCESS_UNIT = 0.01
"""Excess, in nats for each dimension of an embedding, below which it hardly counts."""

EXCESS_POWER = 0.3
"""How fast the excess raises the share: the ratio of their weights (0.27 to 0.31) in a logistic regression that tells
good pictures of products that were left out from altered ones of learned products, all of them training pictures
(``benchmarks/unknown_verdicts.py``)."""


def counted_shares(distance: torch.Tensor, share: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
    """Shares as they count: 1 at least of a product that the picture is far from.

    Distances and shares are ``(…, T)``; ``typical`` ``(T,)`` is the median distance of each product's good pictures.
    """
    return torch.where(distance > FAR_MULTIPLE * typical, share.clamp_min(1), share)


def ground_level(patch_nll: np.ndarray) -> float:
    """NLL of a picture's calmest tenth of patches: ``(H, W)`` to the value that nine tenths exceed, in nats."""
    return float(np.quantile(patch_nll, GROUND_QUANTILE))


def strangeness(share: float, ground: float, typical_ground: float, dim: int) -> float:
    """The share, raised by what the expert says: ``share · (1 + excess / unit)^power``; never below ``share``.

    ``ground`` is the picture's ground level and ``typical_ground`` the median one of good pictures, in nats for a patch
    of ``dim`` values. Without unit; 0 where the share is, as while a single product is learned.
    """
    excess = max(0.0, ground - typical_ground) / dim
    return share * (1 + excess / EXCESS_UNIT) ** EXCESS_POWER


def check_limit(limit: float) -> float:
    """``limit`` itself if strangeness can be compared with it; else ``ConfigurationError``."""
    if not 0 <= limit < math.inf:
        raise ConfigurationError(
            f"the unknown limit cannot be {limit!r}; it is the strangeness of a picture beyond which its product is "
            f"unknown, a number such as {DEFAULT_UNKNOWN_LIMIT}, or 0 to refuse nothing."
        )
    return limit
