"""From a prediction to the bytes of the answer, in the form that the client asked for. Runs in the encoding threads."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from model.picture import open_rgb
from model.results import CheckpointInfo, Finding, Prediction
from service.encode import encode_map, map_to_npy
from service.errors import UnknownProductError
from service.overlay import overlay_png
from service.schemas import Timing, build_response

__all__ = ["MEDIA_TYPES", "Answer", "AnswerForm", "Job", "MapSize", "render"]

MapSize = Literal["image", "model"]
"""Whether the map has the picture's size or that of the model's input."""

MEDIA_TYPES = ("application/json", "image/png", "application/x-npy")
"""The forms of an answer: the full response, the heat map over the picture, the bare map. The first is the default."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the client wants to get. ``map_encoding`` matters to JSON only, ``map_size`` to maps only."""

    media_type: str = MEDIA_TYPES[0]
    map_encoding: Literal["none", "png", "npy"] = "png"
    map_size: MapSize = "image"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything about one judged picture that an answer is made of.

    ``data`` is the upload itself. Only an overlay needs the full-size pixels; it decodes them a second time, so that
    they need not be kept while the picture waits for the model. Durations are in seconds.
    """

    data: bytes
    width: int
    height: int
    finding: Finding
    checkpoint: CheckpointInfo
    forced: bool
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes to send, their media type, and the finding that they tell of."""

    content: bytes
    media_type: str
    finding: Finding


def render(job: Job, form: AnswerForm, read_rgb: Callable[[bytes], np.ndarray] = open_rgb) -> Answer:
    """Make the answer. Slow in proportion to the map's pixels. ``read_rgb`` decodes the image for an overlay.

    Raises ``UnknownProductError`` when there is no map and the form is nothing else.
    """
    started = perf_counter()
    if form.media_type == "image/png":
        prediction = _scored(job.finding)
        return Answer(overlay_png(read_rgb(job.data), prediction), form.media_type, prediction)
    if form.media_type == "application/x-npy":
        return Answer(map_to_npy(_map(_scored(job.finding), job, form.map_size)), form.media_type, job.finding)
    encoding, anomaly_map = form.map_encoding, None
    if encoding != "none" and isinstance(job.finding, Prediction):
        anomaly_map = encode_map(_map(job.finding, job, form.map_size), encoding)
    response = build_response(
        job.finding,
        checkpoint=job.checkpoint,
        width=job.width,
        height=job.height,
        timing=Timing(
            decode=_milliseconds(job.decode_seconds),
            queue=_milliseconds(job.queue_seconds),
            inference=_milliseconds(job.inference_seconds),
            encode=_milliseconds(perf_counter() - started),
        ),
        anomaly_map=anomaly_map,
        forced=job.forced,
    )
    return Answer(response.model_dump_json().encode(), form.media_type, job.finding)


def _map(prediction: Prediction, job: Job, size: MapSize) -> np.ndarray:
    """The pixel map at the wanted size, float32."""
    return prediction.pixel_map(job.height, job.width) if size == "image" else prediction.pixel_map()


def _scored(finding: Finding) -> Prediction:
    if isinstance(finding, Prediction):
        return finding
    nearest = finding.candidates[0]
    raise UnknownProductError(
        f"The picture shows no product that was learned, so there is no map; the nearest is {nearest.name!r}, at a "
        f"distance of {nearest.distance:.1f}. Ask for application/json, or name the product with ?task= to have it "
        "scored all the same."
    )


def _milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(seconds * 1000, 3)
