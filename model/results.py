"""Typed values that the model hands out: what was learned, and what was found in a picture."""

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from model.scoring import pixel_map

__all__ = ["Candidate", "CheckpointInfo", "Prediction", "TaskInfo"]


class TaskInfo(BaseModel):
    """What is recorded about one learned product (a *task*), in the checkpoint's header."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    index: int = Field(ge=0, description="position in the order of learning; 0 also learned the shared base")
    learned_at: datetime = Field(description="when training ended, UTC")
    train_images: int = Field(ge=1, description="good pictures that the expert was fitted to")
    held_out_images: int = Field(ge=1, description="good pictures kept out of the fit, for the threshold")
    epochs: int = Field(ge=1)
    seed: int
    threshold: float = Field(description="image scores above it are called anomalous")
    threshold_quantile: float = Field(gt=0, le=1, description="quantile of the held-out scores at the threshold")
    parameters: int = Field(ge=0, description="numbers that this product added to the checkpoint")
    sha256: str = Field(description="digest of this product's tensors")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Which checkpoint answers: the file's name without folder, and a digest over its whole content."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A learned product and the router's Mahalanobis distance (no unit) of the picture to it."""

    name: str
    index: int
    distance: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the detector found in one picture.

    ``candidates`` holds every learned product, nearest first. ``task`` is the one that scored the picture: the
    nearest, unless the caller named one. ``grid_map`` is the negative log-likelihood of each patch, ``(H, W)``
    float32 in nats; unbounded, may be negative. ``score`` is the mean of its k highest values.
    """

    task: Candidate
    candidates: tuple[Candidate, ...]
    score: float
    threshold: float
    grid_map: np.ndarray
    model_size: int

    @property
    def is_anomalous(self) -> bool:
        """Whether the score exceeds the task's threshold."""
        return self.score > self.threshold

    @property
    def margin(self) -> float:
        """Distance of the runner-up minus that of the nearest product; infinite while only one is learned."""
        if len(self.candidates) < 2:
            return math.inf
        return self.candidates[1].distance - self.candidates[0].distance

    def pixel_map(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The smoothed anomaly map, ``(height, width)`` float32; at the model's input size unless told otherwise."""
        return pixel_map(self.grid_map, self.model_size, height or self.model_size, width or self.model_size)
