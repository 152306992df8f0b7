"""AUROC, average precision and best F1 of images and of pixels; and AUPRO.

The first three are exact, ties included. Positives and negatives are sorted separately; for a threshold at each
positive score, binary searches count the scores at or above it. Pixels take 4 bytes each, and as much again while they
are concatenated for sorting.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from moleflow.training.evaluation.aupro import FPR_LIMIT, aupro, region_scores
from moleflow.training.evaluation.curves import Curve, operating_points

__all__ = ["EVALUATION_SIDE", "ImagePixels", "PixelScores", "Ranking", "image_pixels", "image_ranking", "ranking"]

EVALUATION_SIDE = 256
"""Maps and masks are compared at this size, so that all images weigh the same and memory is known: 578 images take
152 MB, and 303 MB while they are sorted. It is the most common size in the literature."""

_CHUNK = 1 << 21
"""Positive scores per chunk; bounds the memory of the counts, 8 bytes each."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well scores rank positives above negatives, each 0…1; all ``None`` unless there are both.

    ``auroc`` is the probability that a positive scores above a negative, ties counting half. ``average_precision`` is
    the mean, over the positives, of the precision at a threshold equal to their score. ``best_f1`` is the highest F1 of
    any threshold: an upper bound, since the threshold is chosen on the labels.
    """

    auroc: float | None
    average_precision: float | None
    best_f1: float | None


@dataclass(frozen=True, slots=True)
class ImagePixels:
    """The scores of one image at the evaluation size: defect-free pixels ``(N,)``, and those of each region."""

    negatives: np.ndarray
    regions: tuple[np.ndarray, ...]


def image_pixels(anomaly_map: np.ndarray, mask: np.ndarray | None, side: int = EVALUATION_SIDE) -> ImagePixels:
    """Split one image's map, ``(height, width)`` float, by its bool mask of the same shape, ``None`` if it is good.

    Both are resized to ``side`` × ``side``: the map bilinearly, the mask by the nearest pixel. ``ValueError`` if the
    shapes differ or a value is not finite.
    """
    if anomaly_map.ndim != 2 or (mask is not None and mask.shape != anomaly_map.shape):
        raise ValueError(
            f"map and mask must be (height, width) and alike; got {anomaly_map.shape} and "
            f"{None if mask is None else mask.shape}"
        )
    if not np.isfinite(anomaly_map).all():
        raise ValueError("the anomaly map holds values that are not finite")
    values = _resized(anomaly_map.astype(np.float32), side, Image.Resampling.BILINEAR)
    if mask is None:
        return ImagePixels(values.ravel(), ())
    marked = _resized(mask.astype(np.uint8), side, Image.Resampling.NEAREST) > 0
    return ImagePixels(values[~marked], tuple(region_scores(values, marked)))


class PixelScores:
    """Collects the anomaly maps and masks of one category, and computes the metrics over all pixels.

    Defective images without a mask must be left out: their pixels have no labels.
    """

    def __init__(self, side: int = EVALUATION_SIDE) -> None:
        self.side = side
        self._negatives: list[np.ndarray] = []
        self._regions: list[np.ndarray] = []
        self._sorted = False

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray | None) -> None:
        """Add one image's map and mask; see ``image_pixels``."""
        self.append(image_pixels(anomaly_map, mask, self.side))

    def append(self, pixels: ImagePixels | None) -> None:
        """Add one image; ``None`` (no labels) adds nothing. Arrays are kept, not copied, and may be shared."""
        if pixels is None:
            return
        self._sorted = False
        self._negatives.append(pixels.negatives)
        self._regions.extend(pixels.regions)

    def ranking(self) -> Ranking:
        """AUROC, average precision and best F1 over all pixels so far."""
        return ranking(self._sorted_negatives(), _joined(self._regions))

    def aupro(self, limit: float = FPR_LIMIT) -> float | None:
        """AUPRO over all images so far; see ``moleflow.training.evaluation.aupro``."""
        return aupro(self._sorted_negatives(), self._regions, limit)

    def roc(self) -> Curve | None:
        positives = _joined(self._regions)
        positives.sort()
        return operating_points(self._sorted_negatives(), [positives] if len(positives) else [])

    def pro(self, limit: float = FPR_LIMIT) -> Curve | None:
        """The curve of the mean overlap of regions."""
        return operating_points(self._sorted_negatives(), self._regions, limit)

    def _sorted_negatives(self) -> np.ndarray:
        """All defect-free pixels ascending; concatenated and sorted once."""
        if not self._sorted:
            self._negatives = [_joined(self._negatives)]
            self._negatives[0].sort()
            self._sorted = True
        return self._negatives[0]


def image_ranking(scores: Sequence[float] | np.ndarray, anomalous: Sequence[bool] | np.ndarray) -> Ranking:
    """The metrics of images, with one score and one label each. ``ValueError`` if the lengths differ."""
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(anomalous, dtype=bool)
    if values.shape != labels.shape or values.ndim != 1:
        raise ValueError(f"scores and labels must be two lists of one length; got {values.shape} and {labels.shape}")
    return ranking(values[~labels], values[labels])


def ranking(negatives: np.ndarray, positives: np.ndarray) -> Ranking:
    """The metrics of scores ``(N,)`` and ``(P,)``; sorts both in place. ``ValueError`` on NaN."""
    if not len(negatives) or not len(positives):
        return Ranking(None, None, None)
    negatives.sort()
    positives.sort()
    if np.isnan(negatives[-1]) or np.isnan(positives[-1]):  # NaN sorts last
        raise ValueError("a score is NaN")
    wins_twice, precisions, best_f1 = 0, 0.0, 0.0
    for start in range(0, len(positives), _CHUNK):
        thresholds = positives[start : start + _CHUNK]
        below = np.searchsorted(negatives, thresholds, side="left")
        not_above = np.searchsorted(negatives, thresholds, side="right")
        wins_twice += int(below.sum()) + int(not_above.sum())
        true = len(positives) - np.searchsorted(positives, thresholds, side="left")
        called = true + len(negatives) - below
        precisions += float((true / called).sum())
        best_f1 = max(best_f1, float((2 * true / (called + len(positives))).max()))
    return Ranking(
        auroc=wins_twice / (2 * len(negatives) * len(positives)),
        average_precision=precisions / len(positives),
        best_f1=best_f1,
    )


def _resized(values: np.ndarray, side: int, how: Image.Resampling) -> np.ndarray:
    """Resize ``(height, width)`` float32 or uint8 to ``(side, side)``."""
    if values.shape == (side, side):
        return values
    return np.asarray(Image.fromarray(values).resize((side, side), how))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
