"""The JSON responses of the service, which ``moleflow predict --json`` prints too. Imported without PyTorch."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from moleflow.model.verdict.records import MAX_CANDIDATES, MAX_REGIONS, TaskInfo, Verdict

__all__ = [
    "AnomalyMap",
    "BatchResponse",
    "FeedbackResponse",
    "ImageResult",
    "ImageSize",
    "LiveResponse",
    "PredictionResponse",
    "Problem",
    "ReadyResponse",
    "Routing",
    "ScoresResponse",
    "TaskReference",
    "TasksResponse",
    "Timing",
]


class Schema(BaseModel):
    """Base of all responses, also made of the model's results by their attributes. Rejects unknown keys, and numbers
    that JSON cannot represent."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, from_attributes=True)


class TaskReference(Schema):
    """The learned product whose expert scored the image."""

    name: str = Field(examples=["bottle"])
    index: int = Field(ge=0, description="position in the order of learning")


class RoutingCandidate(Schema):
    """A learned product, and the distance of the image to it."""

    name: str = Field(examples=["bottle"])
    index: int = Field(ge=0, description="position in the order of learning")
    distance: float = Field(description="distance of the image to the product, without unit")
    p_value: float = Field(
        ge=0, le=1, description="probability that a good image of the product is at least as far away"
    )
    distance_ratio: float = Field(
        ge=0,
        description="distance relative to that between this product and the nearest other one: 0 at this product, 1 as "
        "far away as the other; 0 with a single product",
    )


class Routing(Schema):
    """How the product was chosen."""

    distance: float = Field(description="distance to the product that scored the image, or else to the nearest one")
    margin: float | None = Field(description="distance to the second nearest product minus the nearest; null with one")
    candidates: Annotated[list[RoutingCandidate], Field(max_length=MAX_CANDIDATES)] = Field(
        description="the nearest products, nearest first"
    )
    novelty_score: float = Field(
        ge=0, description="how little the image resembles any learned product; above the limit its product is unknown"
    )
    forced: bool = Field(description="whether the request named the product, so that routing was skipped")


class RegionBox(Schema):
    """A connected part of the anomaly map above the pixel threshold, in pixels of the image.

    ``x`` and ``y`` are its leftmost column and topmost row; (0, 0) is the upper left corner of the image.
    """

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    area_fraction: float = Field(gt=0, le=1, description="fraction of the image that the region, not its box, covers")
    peak: float = Field(description="maximum of the map inside the region")
    peak_x: int = Field(ge=0, description="column of the peak")
    peak_y: int = Field(ge=0, description="row of the peak")


class AnomalyMap(Schema):
    """The anomaly of every pixel, in the score's units; higher is more anomalous, and values may be negative.

    ``png``: 16-bit greyscale; the score is minimum + stored / 65535 * (maximum - minimum).
    ``npy``: a NumPy file of the scores; float16 values are rounded to one part in 2,000 and clipped to ±65,504.
    """

    encoding: Literal["png", "npy"]
    dtype: Literal["uint16", "float32", "float16"] = Field(description="type of the stored values")
    shape: tuple[int, int] = Field(description="height and width in pixels")
    minimum: float
    maximum: float
    data: str = Field(description="the file, in base64")


class ImageSize(Schema):
    """Size of the image in pixels, after applying its EXIF orientation."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Checkpoint(Schema):
    """The loaded checkpoint: its file name and a digest of its content."""

    name: str = Field(examples=["factory.safetensors"])
    digest: str


class Timing(Schema):
    """Processing times in milliseconds. ``inference`` is the time of the whole batch that the image was in."""

    decode: float = Field(ge=0)
    queue: float = Field(ge=0, description="waiting for a decoder and for the model")
    inference: float = Field(ge=0)
    encode: float = Field(ge=0)


class PredictionResponse(Schema):
    """The prediction for one image.

    With the verdict ``unknown_product`` everything that comes from an expert is null, and ``routing`` lists the nearest
    products.
    """

    id: str | None = Field(
        default=None, description="identifies this answer, for feedback; null if it is not from the service"
    )
    verdict: Verdict = Field(description="good, anomalous, or unknown_product: the image matches no learned product")
    task: TaskReference | None = Field(description="the product; null when it is unknown")
    routing: Routing
    score: float | None = Field(
        description="anomaly score of the image, in the units of its product's scoring; unbounded, may be negative"
    )
    p_value: float | None = Field(
        ge=0,
        le=1,
        description="calibrated score: probability that a good image of this product scores at least as high",
    )
    threshold: float | None = Field(description="score that a fraction false_alarm_rate of good images exceeds")
    false_alarm_rate: float = Field(gt=0, lt=1, description="fraction of good images that may be called anomalous")
    is_anomalous: bool | None = Field(description="whether the score is above the threshold")
    pixel_threshold: float | None = Field(description="threshold of the anomaly map for regions")
    regions: Annotated[list[RegionBox], Field(max_length=MAX_REGIONS)] = Field(
        description="parts of the map above the pixel threshold, by descending peak"
    )
    anomaly_map: AnomalyMap | None = Field(description="null with map=none or an unknown product")
    inspected: list[str] | None = Field(
        default=None,
        description="rows of patches of the whole image, from the top: 1 where its product inspects it, 0 where not; "
        "null: everywhere",
    )
    warnings: list[str] = Field(
        description="how the image differs in kind from the training images, such as in its value range"
    )
    image: ImageSize
    checkpoint: Checkpoint
    timing_ms: Timing


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="identifier of the problem type", examples=["urn:moleflow:problem:unsupported-image"])
    title: str = Field(description="the problem type in words", examples=["The image cannot be read"])
    status: int = Field(description="HTTP status code", examples=[415])
    detail: str = Field(description="what went wrong with this request, and what to do")
    instance: str = Field(description="identifier of this occurrence; for status 500 also in the log")


class ImageResult(Schema):
    """The answer for one image of several: a prediction or an error, the other is null."""

    file: str = Field(description="file name that the form gives the image; may be empty", examples=["part1.jpg"])
    prediction: PredictionResponse | None
    error: Problem | None = Field(description="why there is no prediction, as /predict would respond")


class BatchResponse(Schema):
    """The answers to several images, in the order of the form."""

    results: list[ImageResult]


class TasksResponse(Schema):
    """The learned products, in order of learning."""

    checkpoint: Checkpoint
    tasks: list[TaskInfo]


class ScoresResponse(Schema):
    """The scores of the good images that calibrate a product, as a histogram."""

    task: TaskReference
    threshold: float = Field(description="images with a higher score are called anomalous")
    images: int = Field(ge=1, description="scores, of good images and their altered copies")
    edges: list[float] = Field(description="of the bins, ascending; the last is at least the threshold")
    counts: list[int] = Field(description="scores in each bin, one fewer than there are edges")


class LiveResponse(Schema):
    """The service runs and need not be restarted."""

    status: Literal["live"] = "live"


class FeedbackResponse(Schema):
    """The image of an answer is kept, with its true verdict."""

    id: str
    task: str = Field(description="the product that it is kept for")
    verdict: Literal["good", "defect"]
    file: str = Field(description="its file, relative to the folder for feedback")


class LastReload(Schema):
    """The last attempt to serve the new content of the checkpoint's file."""

    at: AwareDatetime
    succeeded: bool = Field(description="if not, what was loaded before is still served")
    detail: str = Field(description="why it failed; empty if it did not")


class ReadyResponse(Schema):
    """The model is loaded and works."""

    status: Literal["ready"] = "ready"
    checkpoint: Checkpoint
    tasks: int = Field(ge=0, description="number of learned products")
    device: str = Field(examples=["cpu"])
    precision: str = Field(examples=["fp32"])
    damaged_products: list[str] = Field(
        description="products whose expert is damaged; their images get status 500, all other products are available"
    )
    last_reload: LastReload | None = Field(description="null if the checkpoint was not reloaded since the start")
    feedback: bool = Field(default=False, description="whether feedback is kept (`MOLEFLOW_FEEDBACK`)")
    teaching: bool = Field(default=False, description="whether products can be taught (`MOLEFLOW_TEACHING`)")
