"""The figures of one category, from a score and an anomaly map of each of its test images.

Every evaluation uses these two functions: of a detector, of embeddings, of a running service, and of other methods.
"""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from moleflow.training.data.datasets import Sample
from moleflow.training.data.masks import read_mask
from moleflow.training.evaluation.metrics import ImagePixels, PixelScores, image_pixels, image_ranking
from moleflow.training.evaluation.records import Figures

__all__ = ["category_figures", "labelled_pixels"]


def labelled_pixels(sample: Sample, anomaly_map: np.ndarray) -> ImagePixels | None:
    """The pixels of a test image by its masks, which are read at the size of ``anomaly_map``, ``(height, width)``.

    ``None`` for a defective image without mask: its pixels have no labels. ``DatasetError`` when a mask is unreadable.
    """
    if sample.is_anomalous and not sample.masks:
        return None
    return image_pixels(anomaly_map, read_mask(sample.masks, *anomaly_map.shape) if sample.masks else None)


def category_figures(
    samples: Sequence[Sample], scores: Sequence[float], pixels: PixelScores, verdicts: Sequence[bool] | None = None
) -> Figures:
    """The figures of ``samples``, one score each, and their ``pixels``.

    ``verdicts`` say which images were called anomalous; without them there are no rates of false alarms and of found
    defects.
    """
    labels = [sample.is_anomalous for sample in samples]
    images, on_pixels = image_ranking(scores, labels), pixels.ranking()
    called: dict[bool, list[bool]] = {True: [], False: []}
    for label, verdict in zip(labels, verdicts if verdicts is not None else (), strict=verdicts is not None):
        called[label].append(verdict)
    return Figures(
        image_auroc=images.auroc,
        image_ap=images.average_precision,
        image_f1=images.best_f1,
        pixel_auroc=on_pixels.auroc,
        pixel_ap=on_pixels.average_precision,
        aupro=pixels.aupro(),
        false_alarm_rate=fmean(called[False]) if called[False] else None,
        defect_recall=fmean(called[True]) if called[True] else None,
    )
