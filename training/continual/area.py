"""Good images calibrate the inspected area of a learned product."""

import math
from collections.abc import Callable

import numpy as np

from moleflow.model.detector import Detector
from moleflow.model.store.areas import Scores
from moleflow.model.store.checkpoint import Tensors
from moleflow.model.store.layout import HELD_OUT, INSPECTED
from moleflow.model.verdict.calibration import MIN_SCORES, Calibration
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.continual.good_images import GoodImages, joined
from moleflow.training.data.datasets import Category
from moleflow.training.errors import DatasetError
from moleflow.training.progress import Reporter

__all__ = ["area_calibration"]

_DEVIATIONS = 3.0
"""Standard errors from which a mean is no chance: one in 700 is."""


def area_calibration(
    detector: Detector, category: Category, reporter: Reporter
) -> Callable[[TaskInfo, Tensors], Scores]:
    """For ``moleflow.model.store.areas.set_area``: scores the good training images of ``category``, which the expert
    was not fitted to.

    That they were not is checked by their scores without the area, which should be like those of the held-out images;
    if they are lower, the reporter warns. Raises ``DatasetError`` for too few images, or one that cannot be read.
    """

    def calibrate(task: TaskInfo, profile: Tensors) -> Scores:
        images = GoodImages(detector, task, reporter)
        if len(category.train) < MIN_SCORES:
            raise DatasetError(
                f"{len(category.train)} good images of {category.name!r} calibrate no area; give at least "
                f"{MIN_SCORES}, 30 or more are better."
            )
        plain = images.numbers(category.train, "good images")
        found = joined([plain, images.altered(category.train)], plain)
        known = Calibration.fit(profile[f"{HELD_OUT}.scores"].tolist())
        chance = float(np.mean([known.p_value(float(score)) for score in found[f"{HELD_OUT}.scores"]]))
        # p-values of images like the held-out ones are uniform, with a variance of 1/12; copies are no new images.
        if chance - 0.5 > _DEVIATIONS / math.sqrt(12 * len(category.train)):
            reporter.line(
                f"warning: {category.name}: without the area, these images score lower than the held-out ones did "
                f"(mean p-value {chance:.2f}, not 0.5). If the product was learned from them, the new threshold is too "
                "low, and too many good images will alarm; give others, or train it again with its area."
            )
        return {key: found[f"{INSPECTED}.{key}"] for key in ("scores", "peaks")}

    return calibrate
