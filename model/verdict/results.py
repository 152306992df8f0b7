"""Typed results: what was found in an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, Self

import numpy as np

from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.images.value_range import range_warnings
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, TaskCalibration, check_rate
from moleflow.model.verdict.maps import pixel_map
from moleflow.model.verdict.masking import pixel_mask
from moleflow.model.verdict.records import (
    MAX_CANDIDATES,
    MAX_COPIES,
    MAX_TASKS,
    CheckpointInfo,
    Sha256,
    TaskInfo,
    Verdict,
)
from moleflow.model.verdict.regions import Region, find_regions

__all__ = [
    "MAX_CANDIDATES",
    "MAX_COPIES",
    "MAX_TASKS",
    "Candidate",
    "CheckpointInfo",
    "Failure",
    "Finding",
    "Prediction",
    "Refusal",
    "Sha256",
    "TaskInfo",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A learned product and the router's distance (dimensionless) of the image to it.

    ``p_value`` is the probability that a good image of the product is at least as far. ``distance_ratio`` is relative
    to the nearest other product: 0 at this product, 1 as far as the other one; 0 if there is none.
    """

    name: str
    index: int
    distance: float
    p_value: float
    distance_ratio: float


@dataclass(frozen=True, slots=True)
class _Routed:
    """Common fields of all results; ``candidates`` are the nearest products, nearest first.

    ``novelty_score`` (``moleflow.model.routing.novelty``) is compared with the unknown limit. ``white_level`` is that
    of the product that scored the image, else of the nearest; ``warnings`` tell if the image's value range does not
    match it (``moleflow.model.images.value_range``).
    """

    candidates: tuple[Candidate, ...]
    novelty_score: float = field(default=0.0, kw_only=True)
    false_alarm_rate: float = field(default=DEFAULT_FALSE_ALARM_RATE, kw_only=True)
    white_level: int | None = field(default=None, kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    def at(self, false_alarm_rate: float) -> Self:
        """The same result at another false-alarm rate.

        Raises:
            ConfigurationError: the rate is not in (0, 1).
        """
        return replace(self, false_alarm_rate=check_rate(false_alarm_rate))

    def of_image(self, image: np.ndarray, tasks: Sequence[TaskInfo]) -> Self:
        """The same result with the white level and warnings for ``image`` (at the model's size)."""
        task = tasks[self.product.index]
        if image.dtype == np.uint8 and task.white_level is None:
            return self
        return replace(self, white_level=task.white_level, warnings=range_warnings(image, task.white_level, task.name))

    @property
    def product(self) -> Candidate:
        """The nearest product."""
        return self.candidates[0]

    @property
    def margin(self) -> float:
        """Distance of the runner-up minus that of the nearest product; infinite with a single product."""
        if len(self.candidates) < 2:
            return math.inf
        return self.candidates[1].distance - self.candidates[0].distance


@dataclass(frozen=True, slots=True)
class Refusal(_Routed):
    """The image shows an unknown product: there is no score and no map.

    Example:
        >>> from moleflow.model.detector import Detector
        >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        >>> found = Detector.load("factory.safetensors").predict([noise])[0]
        >>> found.verdict.value, len(found.candidates), found.novelty_score > 0.7
        ('unknown_product', 3, True)
    """

    @property
    def verdict(self) -> Verdict:
        """``unknown_product``."""
        return Verdict.UNKNOWN_PRODUCT


@dataclass(frozen=True, slots=True)
class Prediction(_Routed):
    """An expert's result for one image.

    ``task`` is the product whose expert scored the image: the nearest, unless the caller named one. ``grid_map`` is
    the anomaly of each patch, ``(H, W)`` float32, and ``score`` the mean of the k highest patches; by the checkpoint's
    ``ScoringConfig`` they are NLLs in nats, or dimensionless. Both are raw, unbounded, and may be negative;
    ``calibration`` gives their p-values and thresholds. ``is_unknown`` means that the novelty score exceeds the limit,
    but the product was named or refusing was off.

    ``inspected`` ``(H, W)`` bool are the patches of the product's inspected area, ``None`` for all. Outside, maps have
    the lowest value of the inspected patches.

    Construction raises ``ExpertError`` if a value is not finite: a comparison with NaN would read as a verdict.

    Example:
        >>> from moleflow.model.detector import Detector
        >>> image = np.full((48, 64, 3), 128, dtype=np.uint8)
        >>> found = Detector.load("factory.safetensors").predict([image], ["bolt"])[0]  # the product is known
        >>> found.task.name, found.pixel_map(48, 64).shape
        ('bolt', (48, 64))
        >>> found.is_anomalous == (found.score > found.threshold)
        True
        >>> found.at(0.001).threshold > found.threshold  # a lower false-positive rate, a higher threshold
        True
    """

    task: Candidate
    score: float
    grid_map: np.ndarray
    model_size: int
    calibration: TaskCalibration
    is_unknown: bool = field(default=False, kw_only=True)
    inspected: np.ndarray | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and math.isfinite(self.novelty_score) and np.isfinite(self.grid_map).all()):
            raise ExpertError(
                self.task.name,
                "its scores are not finite. Restore the checkpoint from a backup, or train the product again; if the "
                "error persists, use precision fp32.",
            )

    @property
    def product(self) -> Candidate:
        """The product whose expert scored the image."""
        return self.task

    @property
    def p_value(self) -> float:
        """Probability that a good image of this product scores at least as high: the calibrated score."""
        return self.calibration.scores.p_value(self.score)

    @property
    def threshold(self) -> float:
        """The score that good images exceed at the false-alarm rate."""
        return self.calibration.scores.threshold(self.false_alarm_rate)

    @property
    def pixel_threshold(self) -> float:
        """The value that the maximum of a good image's pixel map exceeds at the false-alarm rate."""
        return self.calibration.peaks.threshold(self.false_alarm_rate)

    @property
    def is_anomalous(self) -> bool:
        """Whether the score exceeds the threshold."""
        return self.score > self.threshold

    @property
    def verdict(self) -> Verdict:
        """``good`` or ``anomalous``."""
        return Verdict.ANOMALOUS if self.is_anomalous else Verdict.GOOD

    def pixel_map(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The smoothed anomaly map, ``(height, width)`` float32; at the model's input size by default."""
        height, width = height or self.model_size, width or self.model_size
        found = pixel_map(self.grid_map, self.model_size, height, width)
        if self.inspected is not None:
            found[~pixel_mask(self.inspected, height, width)] = self.grid_map.min()
        return found

    def regions(self, height: int, width: int) -> tuple[Region, ...]:
        """Connected components above the pixel threshold, in pixels of an image of that size, highest peak first.

        Computed at the model's size, where the threshold was calibrated; upsampling adds no information. Independent
        of the verdict: good images have regions at the false-alarm rate.
        """
        side, mask = self.model_size, self.inspected
        inspected = None if mask is None else pixel_mask(mask, side, side)
        return find_regions(self.pixel_map(), self.pixel_threshold, height, width, inspected)


@dataclass(frozen=True, slots=True)
class Failure:
    """The image could not be scored; ``error`` says why."""

    error: PredictionError

    @property
    def verdict(self) -> NoReturn:
        """There is none: raises ``error``."""
        raise self.error


Finding = Prediction | Refusal
"""The result for one image."""
