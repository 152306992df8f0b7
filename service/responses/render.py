"""Rendering a prediction in the requested response format. Runs in the encoder threads."""

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
from moleflow.service.responses.build import build_response
from moleflow.service.responses.encode import base64_pieces, describe_map, npy_pieces, overlay_png
from moleflow.service.responses.schemas import PredictionResponse, Timing

__all__ = [
    "MEDIA_TYPES",
    "TENSOR_TYPE",
    "Job",
    "MapChoice",
    "MapSize",
    "RenderedResponse",
    "ResponseFormat",
    "max_response_bytes",
    "render",
]

MapChoice = Literal["none", "png", "npy", "npy16"]
"""Encoding of the map in the JSON response."""

MapSize = Literal["image", "model"]
"""The size of the map: that of the image or of the model's input."""

MEDIA_TYPES = ("application/json", "image/png", "application/x-npy")
"""Full response, heat map over the image, map alone. The first is the default."""

TENSOR_TYPE = "application/octet-stream"
"""The map alone at the size of the model's input, as little-endian float32; nothing if there is none."""

_EMPTY_DATA = b'"data":""'
"""The placeholder for the map's data in the JSON."""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The requested response format. For ``application/x-npy``, ``npy16`` selects float16, everything else float32."""

    media_type: str = MEDIA_TYPES[0]
    map_encoding: MapChoice = "png"
    map_size: MapSize = "image"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything about one image that its response is made of.

    ``data`` is the uploaded file. Only an overlay needs the full-size pixels; it decodes the file again, so that they
    need not stay in memory while the image waits for the model. Durations are in seconds.
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
    identifier: str | None = None


@dataclass(frozen=True, slots=True)
class RenderedResponse:
    """The body in pieces, its media type, and the finding that it represents."""

    pieces: tuple[bytes | memoryview, ...]
    media_type: str
    finding: Finding

    @property
    def size(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


def max_response_bytes(response_format: ResponseFormat, height: int, width: int) -> int:
    """Upper bound of the size of a response with a map of the image's size; 0 for responses without one."""
    is_json, encoding = response_format.media_type == MEDIA_TYPES[0], response_format.map_encoding
    if response_format.media_type == "image/png":
        return 4 * height * width
    if response_format.map_size == "model" or (is_json and encoding == "none"):
        return 0
    bytes_per_pixel = 4 if encoding == "npy" or not is_json else 3
    return bytes_per_pixel * height * width * (4 if is_json else 3) // 3  # base64 takes 4 bytes for 3


def _read_rgb(data: bytes, white_level: int) -> np.ndarray:
    """Decode an image whose size was checked before."""
    return open_rgb(data, max_pixels=sys.maxsize, white_level=white_level)


def render(
    job: Job, response_format: ResponseFormat, read_rgb: Callable[[bytes, int], np.ndarray] = _read_rgb
) -> RenderedResponse:
    """Render the response; takes time in proportion to the size of the map.

    ``read_rgb`` decodes the image for an overlay; its second argument is the 16-bit value that becomes white. Raises
    ``UnknownProductError`` when the format is the map or overlay alone and there is no map.
    """
    started = perf_counter()
    media_type, encoding = response_format.media_type, response_format.map_encoding
    if media_type == "image/png":
        prediction = _scored(job.finding)
        image = read_rgb(job.data, prediction.white_level or FULL_SCALE)
        return RenderedResponse((overlay_png(image, prediction),), media_type, prediction)
    if media_type == "application/x-npy":
        values = _map(_scored(job.finding), job, response_format.map_size)
        return RenderedResponse(tuple(npy_pieces(values, half=encoding == "npy16")), media_type, job.finding)
    if media_type == TENSOR_TYPE:
        if encoding == "none" or not isinstance(job.finding, Prediction):
            return RenderedResponse((), media_type, job.finding)
        values = np.ascontiguousarray(_map(job.finding, job, "model"), "<f4")
        return RenderedResponse((values.data.cast("B"),), media_type, job.finding)
    anomaly_map, data = None, None
    if encoding != "none" and isinstance(job.finding, Prediction):
        anomaly_map, data = describe_map(_map(job.finding, job, response_format.map_size), encoding)
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
        identifier=job.identifier,
    )
    return RenderedResponse(_json_pieces(response, encoded), media_type, job.finding)


def _json_pieces(response: PredictionResponse, encoded: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The JSON with the map's data inserted. Letting pydantic serialise it would copy a hundred megabytes and hold
    Python's global interpreter lock while looking for characters to escape."""
    before, placeholder, after = response.model_dump_json().encode().partition(_EMPTY_DATA)
    # No string value can contain the placeholder, since quotation marks are escaped in JSON strings.
    return (before, placeholder[:-1], *encoded, placeholder[-1:], after) if placeholder else (before,)


def _map(prediction: Prediction, job: Job, size: MapSize) -> np.ndarray:
    """The pixel map at the requested size, float32."""
    return prediction.pixel_map(job.height, job.width) if size == "image" else prediction.pixel_map()


def _scored(finding: Finding) -> Prediction:
    if isinstance(finding, Prediction):
        return finding
    nearest = finding.candidates[0]
    raise UnknownProductError(
        f"The image shows no learned product, so there is no map; the nearest product is {nearest.name!r} at distance "
        f"{nearest.distance:.1f}. Request application/json, or name the product with ?task= to score the image anyway."
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
