"""The JSON that the service answers with, and that ``moleflow predict --json`` prints."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from moleflow.model.verdict.regions import MAX_REGIONS, Region
from moleflow.model.verdict.results import MAX_CANDIDATES, CheckpointInfo, Finding, Prediction, TaskInfo, Verdict

__all__ = [
    "AnomalyMap",
    "Checkpoint",
    "ImageSize",
    "LiveResponse",
    "PredictionResponse",
    "ReadyResponse",
    "RegionBox",
    "Routing",
    "RoutingCandidate",
    "TaskReference",
    "TasksResponse",
    "Timing",
    "build_response",
]


class Schema(BaseModel):
    """Base of all responses: unknown keys and numbers that JSON cannot carry are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskReference(Schema):
    """The learned product whose expert scored the image."""

    name: str = Field(examples=["bottle"])
    index: int = Field(ge=0, description="position in the order of learning")


class RoutingCandidate(Schema):
    """A learned product, and how far the image is from it."""

    name: str = Field(examples=["bottle"])
    index: int = Field(ge=0, description="position in the order of learning")
    distance: float = Field(description="distance of the image to the product; no unit")
    p_value: float = Field(ge=0, le=1, description="chance that a good image of the product is at least as far")
    distance_ratio: float = Field(
        ge=0, description="distance over that to the nearest other product: 0 at this one, 1 at the other"
    )


class Routing(Schema):
    """How the product was chosen."""

    distance: float = Field(description="distance of the image to the product that scored it, else to the nearest")
    margin: float | None = Field(description="the runner-up's distance minus the nearest one's; null with one product")
    candidates: Annotated[list[RoutingCandidate], Field(max_length=MAX_CANDIDATES)] = Field(
        description="the nearest products, nearest first"
    )
    novelty_score: float = Field(
        ge=0, description="how little the learned products explain the image; beyond the limit it is refused"
    )
    forced: bool = Field(description="whether the request named the product, so that routing was skipped")


class RegionBox(Schema):
    """A connected part of the anomaly map above the pixel threshold, in pixels of the image.

    ``x`` and ``y`` are its leftmost column and topmost row, counted from 0 at the upper left.
    """

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    area_fraction: float = Field(gt=0, le=1, description="share of the image that the region covers, not its box")
    peak: float = Field(description="highest value of the map inside, in nats")
    peak_x: int = Field(ge=0, description="column of the peak")
    peak_y: int = Field(ge=0, description="row of the peak")

    @classmethod
    def of(cls, region: Region) -> "RegionBox":
        """The same, from the model's record."""
        return cls(**{name: getattr(region, name) for name in cls.model_fields})


class AnomalyMap(Schema):
    """The anomaly of every pixel, in nats; higher is more anomalous, and values may be negative.

    ``png``: 16-bit greyscale; the real value is minimum + stored / 65535 * (maximum - minimum).
    ``npy``: a NumPy file of the real values; as float16 they are rounded to one part in 2,000, and those beyond ±65,504
    are set to that.
    """

    encoding: Literal["png", "npy"]
    dtype: Literal["uint16", "float32", "float16"] = Field(description="type of the stored values")
    shape: tuple[int, int] = Field(description="height and width in pixels")
    minimum: float
    maximum: float
    data: str = Field(description="the file, in base64")


class ImageSize(Schema):
    """Size of the image as it is looked at, turned upright by its EXIF orientation."""

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
    """Where the time went, in milliseconds. Inference is that of the whole batch which the image was part of."""

    decode: float = Field(ge=0)
    queue: float = Field(ge=0, description="waiting for a free thread and for the model")
    inference: float = Field(ge=0)
    encode: float = Field(ge=0)


class PredictionResponse(Schema):
    """What was found in one image.

    With the verdict ``unknown_product`` all that an expert tells is null, and ``routing`` lists the products that came
    nearest.
    """

    verdict: Verdict = Field(description="good, anomalous, or unknown_product: no learned product explains the image")
    task: TaskReference | None = Field(description="the product; null when it is unknown")
    routing: Routing
    score: float | None = Field(description="raw anomaly of the image, in nats; unbounded, may be negative")
    p_value: float | None = Field(
        ge=0,
        le=1,
        description="calibrated score: chance that a good image of this product scores at least as high",
    )
    threshold: float | None = Field(description="the score that good images exceed at the false-alarm rate")
    false_alarm_rate: float = Field(gt=0, lt=1, description="share of good images that may be called anomalous")
    is_anomalous: bool | None = Field(description="whether the score is above the threshold")
    pixel_threshold: float | None = Field(description="parts of the anomaly map above it are regions")
    regions: Annotated[list[RegionBox], Field(max_length=MAX_REGIONS)] = Field(
        description="where the map is above the pixel threshold, the highest peak first"
    )
    anomaly_map: AnomalyMap | None = Field(description="null when the request said map=none, or the product is unknown")
    warnings: list[str] = Field(
        description="where the image does not fit what the product was learned from, such as values beyond its white"
    )
    image: ImageSize
    checkpoint: Checkpoint
    timing_ms: Timing


class TasksResponse(Schema):
    """What was learned, in order of learning."""

    checkpoint: Checkpoint
    tasks: list[TaskInfo]


class LiveResponse(Schema):
    """The process runs, and needs no restart."""

    status: Literal["live"] = "live"


class ReadyResponse(Schema):
    """The model is loaded, and it works."""

    status: Literal["ready"] = "ready"
    checkpoint: Checkpoint
    tasks: int = Field(ge=0, description="how many products were learned")
    device: str = Field(examples=["cpu"])
    precision: str = Field(examples=["fp32"])
    damaged_products: list[str] = Field(
        description="products whose expert was found damaged; their images get status 500, all others are judged"
    )


def build_response(
    finding: Finding,
    *,
    checkpoint: CheckpointInfo,
    width: int,
    height: int,
    timing: Timing,
    anomaly_map: AnomalyMap | None = None,
    forced: bool = False,
) -> PredictionResponse:
    """Put one finding into the form of the API.

    ``width`` and ``height`` are those of the upright image, in pixels; ``forced`` says that the caller named the
    product. Raises ``pydantic.ValidationError`` when a number is not finite.
    """
    scored = finding if isinstance(finding, Prediction) else None
    routed = scored.task if scored else finding.candidates[0]
    margin = finding.margin
    return PredictionResponse(
        verdict=finding.verdict,
        task=TaskReference(name=routed.name, index=routed.index) if scored else None,
        routing=Routing(
            distance=routed.distance,
            margin=None if math.isinf(margin) else margin,
            candidates=[
                RoutingCandidate(
                    name=c.name, index=c.index, distance=c.distance, p_value=c.p_value, distance_ratio=c.distance_ratio
                )
                for c in finding.candidates[:MAX_CANDIDATES]
            ],
            novelty_score=finding.novelty_score,
            forced=forced,
        ),
        score=scored.score if scored else None,
        p_value=scored.p_value if scored else None,
        threshold=scored.threshold if scored else None,
        false_alarm_rate=finding.false_alarm_rate,
        is_anomalous=scored.is_anomalous if scored else None,
        pixel_threshold=scored.pixel_threshold if scored else None,
        regions=[RegionBox.of(region) for region in scored.regions(height, width)] if scored else [],
        anomaly_map=anomaly_map,
        warnings=list(finding.warnings),
        image=ImageSize(width=width, height=height),
        checkpoint=Checkpoint.of(checkpoint),
        timing_ms=timing,
    )
