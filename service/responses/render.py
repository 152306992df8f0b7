"""From a prediction to the bytes of the answer, in the form that the client asked for. Runs in the encoding threads."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.images.decode import open_rgb
from moleflow.model.verdict.results import CheckpointInfo, Finding, Prediction
from moleflow.service.errors import UnknownProductError
from moleflow.service.responses.encode import base64_pieces, describe_map, npy_pieces
from moleflow.service.responses.overlay import overlay_png
from moleflow.service.responses.schemas import PredictionResponse, Timing, build_response

__all__ = ["MEDIA_TYPES", "Answer", "Job", "MapChoice", "MapSize", "ResponseFormat", "most_bytes", "render"]

MapChoice = Literal["none", "png", "npy", "npy16"]
"""How the map travels inside the JSON response, if at all."""

MapSize = Literal["image", "model"]
"""Whether the map has the image's size or that of the model's input."""

MEDIA_TYPES = ("application/json", "image/png", "application/x-npy")
"""The forms of an answer: the full response, the heat map over the image, the bare map. The first is the default."""


_NO_DATA = b'"data":""'
"""Where the map's data belongs, in the JSON of a response that has none yet."""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the client wants to get. Of a bare map only ``npy16`` makes a difference: float16 instead of float32."""

    media_type: str = MEDIA_TYPES[0]
    map_encoding: MapChoice = "png"
    map_size: MapSize = "image"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything about one judged image that an answer is made of.

    ``data`` is the upload itself. Only an overlay needs the full-size pixels; it decodes them a second time, so that
    they need not be kept while the image waits for the model. Durations are in seconds.
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
    """The bytes to send, in pieces, their media type, and the finding that they tell of."""

    pieces: tuple[bytes | memoryview, ...]
    media_type: str
    finding: Finding

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(len(piece) for piece in self.pieces)

    @property
    def content(self) -> bytes:
        """All of it, put together."""
        return b"".join(self.pieces)


def most_bytes(form: ResponseFormat, height: int, width: int) -> int:
    """An upper bound of the bytes that an answer takes whose map has the image's size; 0 for small ones."""
    if form.media_type == "image/png":
        return 4 * height * width
    if form.map_size == "model" or (form.map_encoding == "none" and form.media_type == MEDIA_TYPES[0]):
        return 0
    a_pixel = 4 if form.map_encoding == "npy" or form.media_type != MEDIA_TYPES[0] else 3
    return a_pixel * height * width * (4 if form.media_type == MEDIA_TYPES[0] else 3) // 3


def _read_rgb(data: bytes, white_level: int) -> np.ndarray:
    """An image whose number of pixels was found within the limit before."""
    return open_rgb(data, max_pixels=sys.maxsize, white_level=white_level)


def render(job: Job, form: ResponseFormat, read_rgb: Callable[[bytes, int], np.ndarray] = _read_rgb) -> Answer:
    """Make the answer. Slow in proportion to the map's pixels.

    ``read_rgb`` decodes the image for an overlay, given the value of its 16-bit values that is white.

    Raises ``UnknownProductError`` when there is no map and the form is nothing else.
    """
    started = perf_counter()
    if form.media_type == "image/png":
        prediction = _scored(job.finding)
        return Answer(
            (overlay_png(read_rgb(job.data, prediction.white_level or FULL_SCALE), prediction),),
            form.media_type,
            prediction,
        )
    if form.media_type == "application/x-npy":
        values = _map(_scored(job.finding), job, form.map_size)
        return Answer(tuple(npy_pieces(values, half=form.map_encoding == "npy16")), form.media_type, job.finding)
    encoding, anomaly_map, data = form.map_encoding, None, None
    if encoding != "none" and isinstance(job.finding, Prediction):
        anomaly_map, data = describe_map(_map(job.finding, job, form.map_size), encoding)
    encoded = () if data is None else tuple(base64_pieces(data))
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
    return Answer(_json_pieces(response, encoded), form.media_type, job.finding)


def _json_pieces(response: PredictionResponse, encoded: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The response with the map's data put in where it has none: a hundred megabytes need not be copied for it, nor
    Python's lock be held while they are looked through for quotation marks."""
    before, slot, after = response.model_dump_json().encode().partition(_NO_DATA)
    # No name can look like it: inside of JSON's strings quotation marks are escaped.
    return (before, slot[:-1], *encoded, slot[-1:], after) if slot else (before,)


def _map(prediction: Prediction, job: Job, size: MapSize) -> np.ndarray:
    """The pixel map at the wanted size, float32."""
    return prediction.pixel_map(job.height, job.width) if size == "image" else prediction.pixel_map()


def _scored(finding: Finding) -> Prediction:
    if isinstance(finding, Prediction):
        return finding
    nearest = finding.candidates[0]
    raise UnknownProductError(
        f"The image shows no product that was learned, so there is no map; the nearest is {nearest.name!r}, at a "
        f"distance of {nearest.distance:.1f}. Ask for application/json, or name the product with ?task= to have it "
        "scored all the same."
    )


def _milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(seconds * 1000, 3)
