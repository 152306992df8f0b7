"""Typed values that the model hands out: what was learned, and what was found in an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, NoReturn, Self

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.images.value_range import range_warnings
from moleflow.model.names import ProductName
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, TaskCalibration, check_rate
from moleflow.model.verdict.regions import Region, find_regions
from moleflow.model.verdict.scoring import pixel_map

__all__ = [
    "MAX_CANDIDATES",
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

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A digest in hexadecimal."""

MAX_TASKS = 100_000
"""Most products of a checkpoint; the table of the file's tensors has room for some 6,000 of the MAIN configuration."""

_MAX_COUNT = 10**9
"""Most images, epochs or folds that a record may tell: beyond any that there are, and far from what a number holds."""

_FIRST_DAY, _LAST_DAY = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""When a product may have been learned; a clock that was never set says 1970."""

_Count = Annotated[int, Field(le=_MAX_COUNT)]

MAX_CANDIDATES = 5
"""Most products that are named as candidates of the router for an image."""


class Verdict(StrEnum):
    """What is said about an image."""

    GOOD = "good"
    ANOMALOUS = "anomalous"
    UNKNOWN_PRODUCT = "unknown_product"


class TaskInfo(BaseModel):
    """What is recorded about one learned product (a *task*), in the checkpoint's header."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ProductName
    index: int = Field(
        ge=0, lt=MAX_TASKS, description="position in the order of learning; 0 also learned the shared base"
    )
    learned_at: AwareDatetime = Field(ge=_FIRST_DAY, le=_LAST_DAY, description="when training ended, UTC")
    train_images: _Count = Field(ge=1, description="good images that the expert was fitted to")
    held_out_images: _Count = Field(
        ge=2, description="good images that calibrate, each scored by an expert that was not fitted to it"
    )
    folds: _Count = Field(
        ge=1, description="1: those were kept out of the fit; more: cross-fitted, by one temporary expert a fold"
    )
    epochs: _Count = Field(ge=1)
    seed: int = Field(ge=-(2**63), lt=2**63)
    false_alarm_rate: float = Field(gt=0, lt=1, description="share of good images above each of the two thresholds")
    threshold: float = Field(description="image scores above it are called anomalous")
    pixel_threshold: float = Field(description="parts of the anomaly map above it are regions")
    parameters: int = Field(ge=0, lt=2**63, description="numbers that this product added to the checkpoint")
    profile_sha256: Sha256 = Field(description="digest of this product's prototype and held-out scores")
    white_level: int | None = Field(
        default=None,
        ge=255,
        le=65535,
        description="the value of its 16-bit images that is white; null where it was learned from 8-bit images",
    )
    sha256: Sha256 = Field(description="digest of this product's expert")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Which checkpoint answers: the file's name without folder, and a digest over its whole content."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A learned product and the router's distance (no unit) of the image to it.

    ``p_value`` says what the distance means: the chance that a good image of the product is at least as far.
    ``distance_ratio`` is how far it leads to other products: 0 at this one, 1 as far as the nearest other; 0 without
    another.
    """

    name: str
    index: int
    distance: float
    p_value: float
    distance_ratio: float


@dataclass(frozen=True, slots=True)
class _Routed:
    """What is said of every image: ``candidates`` holds the few nearest products, the nearest first.

    ``novelty_score`` (``moleflow.model.routing.novelty``) is what the limit of unknown products is compared with.
    ``white_level`` is that of the product that scored the image, else of the nearest; ``warnings`` say where the image
    does not fit it (``moleflow.model.images.value_range``).
    """

    candidates: tuple[Candidate, ...]
    novelty_score: float = field(default=0.0, kw_only=True)
    false_alarm_rate: float = field(default=DEFAULT_FALSE_ALARM_RATE, kw_only=True)
    white_level: int | None = field(default=None, kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    def at(self, false_alarm_rate: float) -> Self:
        """The same finding, judged at another false-alarm rate.

        Raises:
            ConfigurationError: the rate is no probability.
        """
        return replace(self, false_alarm_rate=check_rate(false_alarm_rate, "the false-alarm rate"))

    def of_image(self, image: np.ndarray, tasks: Sequence[TaskInfo]) -> Self:
        """The same finding with what is to be told of its ``image``, which has the model's size; ``tasks`` are all."""
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
        """Distance of the runner-up minus that of the nearest product; infinite while only one is learned."""
        if len(self.candidates) < 2:
            return math.inf
        return self.candidates[1].distance - self.candidates[0].distance


@dataclass(frozen=True, slots=True)
class Refusal(_Routed):
    """No learned product explains the image: there is neither score nor map."""

    @property
    def verdict(self) -> Verdict:
        """``unknown_product``."""
        return Verdict.UNKNOWN_PRODUCT


@dataclass(frozen=True, slots=True)
class Prediction(_Routed):
    """What an expert found in one image.

    ``task`` is the product whose expert scored the image: the nearest, unless the caller named one. ``grid_map`` is
    the negative log-likelihood of each patch, ``(H, W)`` float32 in nats; unbounded, may be negative. ``score`` is the
    mean of its k highest values. Both are raw: what they mean is the ``calibration``'s to say. ``is_unknown`` says that
    no learned product explains the image; it was scored because its product was named, or refusing was off.

    Raises ``ExpertError`` when it is made of numbers that are not finite: compared with a threshold, they would read as
    a verdict.
    """

    task: Candidate
    score: float
    grid_map: np.ndarray
    model_size: int
    calibration: TaskCalibration
    is_unknown: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and math.isfinite(self.novelty_score) and np.isfinite(self.grid_map).all()):
            raise ExpertError(
                self.task.name,
                "it gives numbers that are not finite. Restore the checkpoint from a copy, or train the product again; "
                "if that was done, predict with the precision fp32.",
            )

    @property
    def product(self) -> Candidate:
        """The product whose expert scored the image."""
        return self.task

    @property
    def p_value(self) -> float:
        """Chance that a good image of this product scores at least as high: the calibrated score."""
        return self.calibration.scores.p_value(self.score)

    @property
    def threshold(self) -> float:
        """The score that good images exceed at the false-alarm rate."""
        return self.calibration.scores.threshold(self.false_alarm_rate)

    @property
    def pixel_threshold(self) -> float:
        """The value that the pixel maps of good images reach anywhere at the false-alarm rate."""
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
        """The smoothed anomaly map, ``(height, width)`` float32; at the model's input size unless told otherwise."""
        return pixel_map(self.grid_map, self.model_size, height or self.model_size, width or self.model_size)

    def regions(self, height: int, width: int) -> tuple[Region, ...]:
        """Connected areas above the pixel threshold, in pixels of an image of that size, the highest peak first.

        They are looked for on the map at the model's size, where its threshold was calibrated; a larger one holds no
        more. They do not depend on the verdict: a good image has any at the false-alarm rate.
        """
        return find_regions(self.pixel_map(), self.pixel_threshold, height, width)


@dataclass(frozen=True, slots=True)
class Failure:
    """The model came to no verdict about the image; ``error`` says why, and whose fault it is."""

    error: PredictionError

    @property
    def verdict(self) -> NoReturn:
        """There is none: raises ``error``."""
        raise self.error


Finding = Prediction | Refusal
"""What is said about one image."""
