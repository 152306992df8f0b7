"""The JSON that the service answers with, and that ``moleflow predict --json`` prints."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.results import CheckpointInfo, Prediction, TaskInfo

__all__ = [
    "MAX_CANDIDATES",
    "AnomalyMap",
    "Checkpoint",
    "ImageSize",
    "LiveResponse",
    "PredictionResponse",
    "ReadyResponse",
    "Routing",
    "RoutingCandidate",
    "TaskReference",
    "TasksResponse",
    "Timing",
    "build_response",
]

MAX_CANDIDATES = 5
"""Most products listed as candidates of the router in one response."""


class Schema(BaseModel):
    """Base of all responses: unknown keys and numbers that JSON cannot carry are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskReference(Schema):
    """The learned product whose expert scored the picture."""

    name: str = Field(examples=["bottle"])
    index: int = Field(ge=0, description="position in the order of learning")


class RoutingCandidate(Schema):
    """A learned product, and how far the picture is from it."""

    name: str = Field(examples=["bottle"])
    index: int = Field(ge=0, description="position in the order of learning")
    distance: float = Field(description="Mahalanobis distance of the picture to the product")


class Routing(Schema):
    """How the product was chosen."""

    distance: float = Field(description="distance of the picture to the product that scored it")
    margin: float | None = Field(description="the runner-up's distance minus the nearest one's; null with one product")
    candidates: Annotated[list[RoutingCandidate], Field(max_length=MAX_CANDIDATES)] = Field(
        description="the nearest products, nearest first"
    )
    forced: bool = Field(description="whether the request named the product, so that routing was skipped")


class AnomalyMap(Schema):
    """The anomaly of every pixel, in nats; higher is more anomalous, and values may be negative.

    ``png``: 16-bit greyscale; the real value is minimum + stored / 65535 * (maximum - minimum).
    ``npy``: a NumPy file of the real values.
    """

    encoding: Literal["png", "npy"]
    dtype: Literal["uint16", "float32"] = Field(description="type of the stored values")
    shape: tuple[int, int] = Field(description="height and width in pixels")
    minimum: float
    maximum: float
    data: str = Field(description="the file, in base64")


class ImageSize(Schema):
    """Size of the picture as it is looked at, turned upright by its EXIF orientation."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Checkpoint(Schema):
    """The checkpoint that answered: its file name, and a digest of its content."""

    name: str = Field(examples=["factory.safetensors"])
    digest: str

    @classmethod
    def of(cls, info: CheckpointInfo) -> "Checkpoint":
        """The same, from the model's record."""
        return cls(name=info.name, digest=info.digest)


class Timing(Schema):
    """Where the time went, in milliseconds. Inference is that of the whole batch which the picture was part of."""

    decode: float = Field(ge=0)
    queue: float = Field(ge=0, description="waiting for a free thread and for the model")
    inference: float = Field(ge=0)
    encode: float = Field(ge=0)


class PredictionResponse(Schema):
    """What was found in one picture."""

    task: TaskReference
    routing: Routing
    score: float = Field(description="anomaly of the picture, in nats; unbounded, may be negative")
    threshold: float = Field(description="high quantile of this product's good pictures kept out of training")
    is_anomalous: bool = Field(description="whether the score is above the threshold")
    anomaly_map: AnomalyMap | None = Field(description="null when the request said map=none")
    image: ImageSize
    checkpoint: Checkpoint
    timing_ms: Timing


class TasksResponse(Schema):
    """What was learned, in order of learning."""

    checkpoint: Checkpoint
    tasks: list[TaskInfo]


class LiveResponse(Schema):
    """The process runs."""

    status: Literal["live"] = "live"


class ReadyResponse(Schema):
    """The model is loaded and warmed up."""

    status: Literal["ready"] = "ready"
    checkpoint: Checkpoint
    tasks: int = Field(ge=0, description="how many products were learned")
    device: str = Field(examples=["cpu"])
    precision: str = Field(examples=["fp32"])


def build_response(
    prediction: Prediction,
    *,
    checkpoint: CheckpointInfo,
    width: int,
    height: int,
    timing: Timing,
    anomaly_map: AnomalyMap | None = None,
    forced: bool = False,
) -> PredictionResponse:
    """Put one prediction into the form of the API.

    ``width`` and ``height`` are those of the upright picture, in pixels; ``forced`` says that the caller named the
    product. Raises ``pydantic.ValidationError`` when a number is not finite.
    """
    task, margin = prediction.task, prediction.margin
    nearest = prediction.candidates[:MAX_CANDIDATES]
    return PredictionResponse(
        task=TaskReference(name=task.name, index=task.index),
        routing=Routing(
            distance=task.distance,
            margin=None if math.isinf(margin) else margin,
            candidates=[RoutingCandidate(name=c.name, index=c.index, distance=c.distance) for c in nearest],
            forced=forced,
        ),
        score=prediction.score,
        threshold=prediction.threshold,
        is_anomalous=prediction.is_anomalous,
        anomaly_map=anomaly_map,
        image=ImageSize(width=width, height=height),
        checkpoint=Checkpoint.of(checkpoint),
        timing_ms=timing,
    )
