"""ROC and PRO curves for reports: exact operating points at a selection of false-positive rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Curve", "operating_points"]

_POINTS = 160
"""Thresholds per curve, about one for every two pixels of its width on a screen."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve, both rates ascending in 0…1."""

    false_positive_rate: tuple[float, ...]
    found: tuple[float, ...]


def operating_points(negatives: np.ndarray, groups: Sequence[np.ndarray], limit: float = 1.0) -> Curve | None:
    """The mean true-positive rate of the groups of positives, at false-positive rates from 0 to about ``limit``.

    ``negatives`` ``(N,)`` and every group ``(n,)`` are ascending. A single group gives the ROC curve, one group per
    region PRO. Thresholds are spread evenly over the false-positive rate; with fewer than ``_POINTS`` negatives, all
    are used. ``None`` without negatives or without groups.
    """
    if not len(negatives) or not len(groups):
        return None
    count = len(negatives)
    most = min(count, int(np.ceil(limit * count)))
    kept = np.unique(np.linspace(1, most, min(most, _POINTS)).round().astype(np.int64))
    thresholds = np.unique(negatives[count - kept])[::-1]
    rates, found = np.zeros((len(thresholds), 2)), np.zeros((len(thresholds), 2))
    # Both corners of each step: positives above a negative are found before it is.
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
