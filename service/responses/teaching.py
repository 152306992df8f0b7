"""The JSON responses about teaching: the images of a product, and jobs that learn it."""

from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field

from moleflow.model.names import ProductName
from moleflow.service.responses.schemas import ImageSize, Problem, Schema

__all__ = [
    "Job",
    "JobProgress",
    "JobState",
    "JobsResponse",
    "TaughtImage",
    "TaughtImagesResponse",
    "TeachResponse",
    "TeachResult",
]

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]


class TaughtImage(Schema):
    """A good image of a product that is kept for learning it."""

    id: str = Field(description="its file name, made of a digest of its content", examples=["9f86d081884c7d65.png"])
    bytes: int = Field(ge=0)
    source: Literal["upload", "feedback"] = Field(description="feedback: somebody called an answer's image good")


class TaughtImagesResponse(Schema):
    """The good images that the next job for this product would learn from."""

    task: ProductName
    images: list[TaughtImage]
    used_bytes: int = Field(ge=0, description="of the folder, with the images of all products")
    max_bytes: int = Field(gt=0, description="that the folder may take (`MOLEFLOW_TEACHING_BYTES`)")


class TeachResult(Schema):
    """What became of one file: it is kept as ``id``, or ``error`` says why not."""

    file: str = Field(description="its name in the form or archive; may be empty", examples=["part1.jpg"])
    id: str | None = Field(description="the image that it is now; the one that it repeats if it is a duplicate")
    duplicate: bool = Field(description="whether the same file was there already, perhaps earlier in this request")
    size: ImageSize | None = Field(description="of the image")
    error: Problem | None = Field(description="why it is not kept")


class TeachResponse(Schema):
    """The answers to the files of one request, in their order, and how many images there are now."""

    task: ProductName
    results: list[TeachResult]
    images: int = Field(ge=0, description="good images of the product, with those of this request")


class JobProgress(Schema):
    """How far a job is, as the training itself says about once a second."""

    model_config = ConfigDict(extra="ignore")

    phase: str = Field(description="what is being done")
    done: int = Field(ge=0, description="images of the phase that are done")
    total: int = Field(ge=0, description="images of the phase")
    fraction: float | None = Field(ge=0, le=1, description="of the time that the job takes; null at first")
    seconds_left: float | None = Field(ge=0, description="for the job, estimated; null at first")
    epoch: int | None = Field(description="last complete epoch of the current fit, or of the last one")
    epochs: int | None = Field(description="epochs of that fit")
    loss: float | None = Field(description="mean loss of that epoch")


class Job(Schema):
    """The learning of one product from its good images."""

    id: str
    task: ProductName = Field(description="the product")
    state: JobState
    images: int = Field(ge=0, description="good images that it learns from, feedback included")
    feedback_images: int = Field(ge=0, description="those of them that feedback gave")
    epochs: int | None = Field(description="epochs of each fit that the request asked for; null for the preset's")
    created: AwareDatetime
    started: AwareDatetime | None = Field(description="when its process last began")
    ended: AwareDatetime | None
    attempts: int = Field(ge=0, description="how often its process was started; a killed one continues")
    detail: str = Field(description="why it waits, or how it ended")
    warnings: list[str] = Field(description="what the training says about the images")
    progress: JobProgress | None = Field(description="null before the training has begun")


class JobsResponse(Schema):
    """The jobs, newest first."""

    jobs: list[Job]
