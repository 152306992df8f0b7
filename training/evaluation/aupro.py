"""AUPRO: how much of every defective region is found, at false-positive rates up to 0.3 (Bergmann et al. 2021).

A *region* is a connected component of a mask, diagonal neighbours included. At a threshold, a region's overlap is the
share of its pixels that score at least as high; PRO is the mean overlap of all regions, so that a small defect weighs
as much as a large one. AUPRO is the area below PRO over the false-positive rate of the defect-free pixels of all
images, from 0 to a limit, divided by that limit: 1 is perfect, and half the limit is chance.

The area is exact, at every threshold that there is and with ties joined by a straight line as in a ROC curve. A
region's pixel of score s adds a step to the curve that begins at a = P(negative > s) and is complete at
b = P(negative ≥ s). The area is therefore a mean over pixels, and needs two binary searches for each of them but no
list of thresholds: what it takes is the memory of the scores.

Source: Bergmann, Batzner, Fauser, Sattlegger and Steger, "The MVTec Anomaly Detection Dataset", IJCV 129 (2021),
section 5.2.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from skimage.measure import label

__all__ = ["FPR_LIMIT", "aupro", "region_scores"]

FPR_LIMIT = 0.3
"""Upper end of the false-positive rate; the value that the data set's authors propose."""

_CHUNK = 1 << 21
"""Pixels looked up at a time, unless one region alone has more; bounds the memory of the counts."""


def region_scores(scores: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The scores ``(height, width)`` inside each region of ``mask``, bool of that shape: ``(n,)`` each, ascending."""
    regions = label(mask, connectivity=2)
    values, numbers = scores[mask], regions[mask]
    order = np.lexsort((values, numbers))
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    return [part for part in np.split(values[order], bounds) if len(part)]


def aupro(negatives: np.ndarray, regions: Sequence[np.ndarray], limit: float = FPR_LIMIT) -> float | None:
    """The area of defect-free pixels' scores ``(N,)``, ascending, and the scores of each region, ``(n,)`` each.

    Between 0 and 1; ``None`` without negatives or without regions. Never above 1, not even by rounding: no pixel
    adds more than 1, and a mean of such values is rounded to 1 at the most. ``ValueError`` when ``limit`` is not
    above 0 and at most 1, or a score is NaN.
    """
    if not 0 < limit <= 1:
        raise ValueError(f"limit must be above 0 and at most 1; got {limit}")
    if not len(negatives) or not len(regions):
        return None
    if np.isnan(negatives[-1]) or any(np.isnan(region[-1]) for region in regions):  # NaN sorts last
        raise ValueError("a score is NaN")
    total = 0.0
    for group in _groups(regions):
        sizes = np.array([len(region) for region in group])
        scores = np.concatenate(group)
        areas = np.empty(len(scores))
        order = np.argsort(scores)  # neighbours in a search are then neighbours in memory: three times as fast
        areas[order] = _step_areas(negatives, scores[order], limit)
        total += float((np.add.reduceat(areas, np.cumsum(sizes) - sizes) / sizes).sum())
    return total / len(regions)


def _step_areas(negatives: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    """Below a step of height 1 that one pixel's score adds to the curve: the share of ``0…limit`` it covers."""
    count = len(negatives)
    begins = (count - np.searchsorted(negatives, scores, side="right")) / (count * limit)
    complete = (count - np.searchsorted(negatives, scores, side="left")) / (count * limit)
    areas = np.clip(1 - (begins + complete) / 2, 0, None)
    # A step that rises across the limit (only ties do) counts with the triangle that lies before it.
    across = (begins < 1) & (complete > 1)
    areas[across] = (1 - begins[across]) ** 2 / (2 * (complete - begins)[across])
    return areas


def _groups(regions: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Consecutive regions, as many at a time as have ``_CHUNK`` pixels together."""
    group: list[np.ndarray] = []
    pixels = 0
    for region in regions:
        if group and pixels + len(region) > _CHUNK:
            yield group
            group, pixels = [], 0
        group.append(region)
        pixels += len(region)
    if group:
        yield group
