"""ROC and PRO curves to be drawn: operating points that scores really have, at chosen false-positive rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Curve", "operating_points"]

_POINTS = 160
"""Thresholds that a curve is drawn at: about one for every two pixels of its width on a screen."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve, both rates ascending in 0…1: false positives, and what is found at that threshold."""

    false_positive_rate: tuple[float, ...]
    found: tuple[float, ...]


def operating_points(negatives: np.ndarray, groups: Sequence[np.ndarray], limit: float = 1.0) -> Curve | None:
    """What is found of each group of positives, on average, at false-positive rates from 0 to about ``limit``.

    ``negatives`` ``(N,)`` and every group ``(n,)`` are ascending. One group gives the ROC curve; one a region gives
    PRO. Thresholds are spread evenly over the rate; of fewer than ``_POINTS`` negatives, every one is taken. ``None``
    without negatives or without groups.
    """
    if not len(negatives) or not len(groups):
        return None
    count = len(negatives)
    most = min(count, int(np.ceil(limit * count)))
    kept = np.unique(np.linspace(1, most, min(most, _POINTS)).round().astype(np.int64))
    thresholds = np.unique(negatives[count - kept])[::-1]
    rates, found = np.zeros((len(thresholds), 2)), np.zeros((len(thresholds), 2))
    # Both corners of each step: the positives that score above a negative are found before it is.
    sides: tuple[Literal["right", "left"], ...] = ("right", "left")
    for corner, side in enumerate(sides):
        rates[:, corner] = (count - np.searchsorted(negatives, thresholds, side)) / count
        for group in groups:
            found[:, corner] += (len(group) - np.searchsorted(group, thresholds, side)) / len(group)
    pairs = zip(rates.ravel().tolist(), (found.ravel() / len(groups)).tolist(), strict=True)
    points = list(dict.fromkeys([(0.0, 0.0), *pairs]))
    if limit >= 1 and points[-1] != (1.0, 1.0):
        points.append((1.0, 1.0))
    return Curve(tuple(rate for rate, _ in points), tuple(share for _, share in points))
