"""Novelty: does an image show a product that was never learned?

The *novelty score* combines two signals:

- The router's *distance ratio* (``moleflow.model.routing.router``) compares whole-image descriptors. It rejects images
  far from every product, but is unreliable for look-alikes and where products lie far apart.
- The *background NLL* is the 10 % quantile of patch NLLs under the nearest product's expert. A defective image of the
  product still has mostly normal patches, so its background NLL hardly changes; in an image of anything else every
  patch is unlikely. The *excess* is the background NLL minus its median over held-out good images.

The excess raises the ratio and never lowers it, so an image whose ratio alone exceeds the limit is refused without
running an expert.

With a single product, or products far apart, the ratio says little. It is therefore raised to at least 1 (as far as
the next product) where the distance itself is many times that of the product's good images.
"""

import math

import numpy as np

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import ConfigurationError

__all__ = ["FAR_MULTIPLE", "background_nll", "check_limit", "novelty_score"]

FAR_MULTIPLE = 5.0
"""An image further from a product than this multiple of the median distance of its good images is far from it. Several
times what good images reach, since defects add distance too. The only criterion while a single product is learned."""

BACKGROUND_QUANTILE = 0.1
"""Quantile of the patch NLLs that is the background NLL: low enough to stay normal beside a large defect."""

EXCESS_UNIT = 0.01
"""Scale of the excess, in nats per embedding dimension; smaller values hardly matter."""

EXCESS_POWER = 0.3
"""Exponent of the excess: its weight relative to the log ratio (0.27 to 0.31) in a logistic regression that separates
good images of left-out products from augmented images of learned ones, all of them training images
(``python -m benchmarks unknown_verdicts``)."""


def background_nll(patch_nll: np.ndarray) -> np.ndarray:
    """The 10 % quantile of each image's patch NLLs: ``(B, H, W)`` to ``(B,)``, in nats."""
    count, height, width = patch_nll.shape
    return np.quantile(patch_nll.reshape(count, height * width), BACKGROUND_QUANTILE, axis=1)


def novelty_score(ratio: float, background: float, typical_background: float, dim: int) -> float:
    """``ratio · (1 + excess / unit)^power``; never below ``ratio``.

    ``background`` is the image's background NLL, ``typical_background`` the median over the product's held-out good
    images; both in nats per patch of ``dim`` values. Dimensionless; 0 where the ratio is 0 (a single product).
    """
    excess = max(0.0, background - typical_background) / dim
    return ratio * (1 + excess / EXCESS_UNIT) ** EXCESS_POWER


def check_limit(limit: float) -> float:
    """``limit`` itself if it is finite and not negative; else ``ConfigurationError``."""
    if not 0 <= limit < math.inf:
        raise ConfigurationError(
            f"the unknown limit cannot be {limit!r}; it is the largest novelty score of a known product, such as "
            f"{DEFAULT_UNKNOWN_LIMIT}, or 0 to refuse nothing."
        )
    return limit
