"""Whether an image shows a product that was never learned: the router's opinion, and the expert's.

The router sees one descriptor of the whole image. Its *distance ratio* for a product says how far the image leads to
the other products (``moleflow.model.routing.router``), and tells what is far from everything learned; of look-alikes,
and among products that lie far apart themselves, it is not sure. The nearest product's expert has seen more. In a
defective image of its product most patches still look as they should, so its calmest tenth hardly changes; in an image
of anything else no patch does. The *excess* is how much less likely that calmest tenth is than in good images of the
product that the expert was not fitted to. The *novelty score* of an image is its ratio, raised by the excess; beyond
the limit the image is of an unknown product. Since the excess never lowers it, an image whose distance ratio alone is
beyond the limit is refused without asking an expert.

Products far apart, or a single one, leave room that no distance ratio tells of: a distance ratio counts as 1, the next
product's place, where the image is many times as far from the product as its own good images are.
"""

import math

import numpy as np
import torch

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import ConfigurationError

__all__ = ["FAR_MULTIPLE", "background_nll", "check_limit", "effective_ratios", "novelty_score"]

FAR_MULTIPLE = 5.0
"""How many times as far from a product as its own good images, by their median, is far: several times what any good
one reaches, since a defect can lead out as well. It is all that there is to go by while a single product is learned."""

BACKGROUND_QUANTILE = 0.1
"""Fraction of an image's patches that its background NLL is not below: few enough to be found beside a large defect."""

EXCESS_UNIT = 0.01
"""Excess, in nats for each dimension of an embedding, below which it hardly counts."""

EXCESS_POWER = 0.3
"""How fast the excess raises the ratio: the ratio of their weights (0.27 to 0.31) in a logistic regression that tells
good images of products that were left out from altered ones of learned products, all of them training images
(``benchmarks/unknown_verdicts.py``)."""


def effective_ratios(distance: torch.Tensor, ratio: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
    """Distance ratios as they count: 1 at least of a product that the image is far from.

    Distances and distance ratios are ``(…, T)``; ``typical`` ``(T,)`` is the median distance of each product's good
    images.
    """
    return torch.where(distance > FAR_MULTIPLE * typical, ratio.clamp_min(1), ratio)


def background_nll(patch_nll: np.ndarray) -> float:
    """NLL of an image's calmest tenth of patches: ``(H, W)`` to the value that nine tenths exceed, in nats."""
    return float(np.quantile(patch_nll, BACKGROUND_QUANTILE))


def novelty_score(ratio: float, background: float, typical_background: float, dim: int) -> float:
    """The ratio, raised by what the expert says: ``ratio · (1 + excess / unit)^power``; never below ``ratio``.

    ``background`` is the image's background NLL, ``typical_background`` the median over the product's held-out good
    images; both in nats per patch of ``dim`` values. Dimensionless; 0 where the ratio is 0 (a single product).
    """
    excess = max(0.0, background - typical_background) / dim
    return ratio * (1 + excess / EXCESS_UNIT) ** EXCESS_POWER


def check_limit(limit: float) -> float:
    """``limit`` itself if novelty score can be compared with it; else ``ConfigurationError``."""
    if not 0 <= limit < math.inf:
        raise ConfigurationError(
            f"the unknown limit cannot be {limit!r}; it is the novelty score of an image beyond which its product is "
            f"unknown, a number such as {DEFAULT_UNKNOWN_LIMIT}, or 0 to refuse nothing."
        )
    return limit
