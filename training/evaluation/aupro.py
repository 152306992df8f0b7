"""AUPRO: area under the per-region overlap curve, at false-positive rates up to 0.3 (Bergmann et al. 2021).

A *region* is a connected component of a mask, with diagonal neighbours. At a threshold, a region's overlap is the
fraction of its pixels that score at least as high; PRO is the mean overlap of all regions, so small defects weigh as
much as large ones. AUPRO is the area under PRO over the false-positive rate of the defect-free pixels of all images,
from 0 to a limit, divided by that limit: 1 is perfect, half the limit is chance.

The area is exact: all thresholds count, and ties are joined by a straight line as in a ROC curve. A region's pixel of
score s adds a step to the curve that begins at a = P(negative > s) and is complete at b = P(negative ≥ s). The area is
therefore a mean over pixels, computed with two binary searches per pixel and no list of thresholds; memory is that of
the scores.

Source: Bergmann, Batzner, Fauser, Sattlegger and Steger, "The MVTec Anomaly Detection Dataset", IJCV 129 (2021),
section 5.2.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from skimage.measure import label

__all__ = ["FPR_LIMIT", "aupro", "region_scores"]

FPR_LIMIT = 0.3
"""Upper end of the false-positive rate, as proposed by the data set's authors."""

_CHUNK = 1 << 21
"""Pixels per chunk, unless one region has more; bounds the memory of the counts."""


def region_scores(scores: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The scores ``(height, width)`` inside each region of ``mask``, bool of that shape: ``(n,)`` each, ascending."""
    regions = label(mask, connectivity=2)
    values, numbers = scores[mask], regions[mask]
    order = np.lexsort((values, numbers))
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    return [part for part in np.split(values[order], bounds) if len(part)]


def aupro(negatives: np.ndarray, regions: Sequence[np.ndarray], limit: float = FPR_LIMIT) -> float | None:
    """AUPRO of defect-free pixels' scores ``(N,)``, ascending, and the scores of each region, ``(n,)`` each.

    In 0…1; ``None`` without negatives or without regions. Never above 1, even after rounding: no pixel adds more than
    1. ``ValueError`` if ``limit`` is not in (0, 1], or a score is NaN.
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
        order = np.argsort(scores)  # sorted searches hit the cache: three times faster
        areas[order] = _step_areas(negatives, scores[order], limit)
        total += float((np.add.reduceat(areas, np.cumsum(sizes) - sizes) / sizes).sum())
    return total / len(regions)


def _step_areas(negatives: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    """The area under the step of height 1 that each score adds to the curve, as a fraction of ``0…limit``."""
    count = len(negatives)
    begins = (count - np.searchsorted(negatives, scores, side="right")) / (count * limit)
    complete = (count - np.searchsorted(negatives, scores, side="left")) / (count * limit)
    areas = np.clip(1 - (begins + complete) / 2, 0, None)
    # A step that rises across the limit (only ties do) counts up to the limit.
    across = (begins < 1) & (complete > 1)
    areas[across] = (1 - begins[across]) ** 2 / (2 * (complete - begins)[across])
    return areas


def _groups(regions: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Consecutive regions in groups of at most ``_CHUNK`` pixels."""
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
