"""What both clients share: requests, responses, and when to try again. Nothing here waits or sends."""

import base64
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from moleflow.client.errors import BusyError, ClientError, UnreachableError, UnreadableFileError, error_of
from moleflow.model.files.outputs import reason
from moleflow.retrying import backoff_seconds, retry_after_seconds
from moleflow.service.responses.schemas import AnomalyMap, PredictionResponse, Problem

__all__ = [
    "Attempts",
    "Call",
    "FolderResult",
    "Image",
    "MapChoice",
    "MapSize",
    "batch_call",
    "check",
    "decode_map",
    "encoded_image",
    "image_name",
    "key_headers",
    "predict_call",
    "read",
    "service_url",
    "unreachable",
]

Image = str | os.PathLike[str] | bytes | np.ndarray
"""An image: the path of a file, the bytes of one, or pixels: ``(height, width, 3)`` or ``(height, width)`` uint8, or
``(height, width)`` uint16."""

MapChoice = Literal["none", "png", "npy", "npy16"]
MapSize = Literal["image", "model"]

_UINT16_MAX = 65535

_MOST_QUOTED = 200
"""Characters of a response that is no problem document in an error's message."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What became of one image of a folder: a prediction or an error."""

    path: Path
    prediction: PredictionResponse | None
    error: ClientError | None


@dataclass(frozen=True, slots=True)
class Call:
    """One request, in the words of ``httpx.Client.request``."""

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)


def predict_call(image: Image, **options: object) -> Call:
    """The request for one image. Raises ``UnreadableFileError`` and ``ValueError``."""
    headers = {"content-type": "application/octet-stream", "accept": "application/json"}
    return Call("POST", "/predict", {"content": encoded_image(image), "params": _given(options), "headers": headers})


def batch_call(images: Sequence[Image], **options: object) -> Call:
    """The request for several images. Raises ``UnreadableFileError`` and ``ValueError``."""
    files = [("file", (image_name(image), encoded_image(image))) for image in images]
    return Call("POST", "/predict/batch", {"files": files, "params": _given(options)})


def _given(options: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}


def image_name(image: Image) -> str:
    """The name that an image has in a form."""
    return Path(image).name if isinstance(image, str | os.PathLike) else "image"


def encoded_image(image: Image) -> bytes:
    """The bytes of an image's file. Raises ``UnreadableFileError`` and ``ValueError``."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return _as_png(image)
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"The image {os.fspath(image)!r} cannot be read: {reason(error)}.") from error


def _as_png(pixels: np.ndarray) -> bytes:
    from PIL import Image as PillowImage

    shape, kind = pixels.shape, pixels.dtype
    if not ((len(shape) == 2 and kind in (np.uint8, np.uint16)) or (shape[2:] == (3,) and kind == np.uint8)):
        raise ValueError(
            f"pixels have shape {shape} and type {kind}; give (height, width, 3) or (height, width) of uint8, or "
            "(height, width) of uint16."
        )
    buffer = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class Attempts:
    """The attempts of one call: at most ``retries`` after the first, all within ``deadline`` seconds."""

    def __init__(self, retries: int, deadline: float | None) -> None:
        self._retries, self._failed = retries, 0
        self._end = None if deadline is None else time.monotonic() + deadline

    def remaining(self) -> float | None:
        """Seconds until the deadline; ``None`` without one."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def delay_after(self, error: ClientError) -> float:
        """Seconds to wait before the next attempt. Raises ``error`` if there should be none."""
        if not isinstance(error, BusyError | UnreachableError) or self._failed >= self._retries:
            raise error
        wished = error.retry_after_seconds if isinstance(error, BusyError) else 0.0
        delay = max(wished, backoff_seconds(self._failed))
        self._failed += 1
        remaining = self.remaining()
        if remaining is not None and delay >= remaining:
            raise error
        return delay


def service_url(url: str) -> str:
    """The address of a service. Raises ``ClientError`` if it is none."""
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"{url!r} is not an address such as http://127.0.0.1:8000.")
    return url


def key_headers(key: str | None) -> dict[str, str]:
    """The header that an API key is sent in."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def unreachable(url: object, error: Exception) -> UnreachableError:
    """The error for a request without a response."""
    return UnreachableError(f"The service at {url} did not respond: {str(error) or type(error).__name__}.")


def check(response: httpx.Response) -> httpx.Response:
    """The response, unless it is an error, which is raised. Its content must have been read."""
    if response.is_success:
        return response
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # of a proxy, or of another program
        detail = " ".join(response.text[:_MOST_QUOTED].split()) or "The response is empty."
        problem = Problem(
            type="about:blank",
            title=response.reason_phrase or "Error",
            status=response.status_code,
            detail=detail,
            instance="",
        )
    raise error_of(problem, retry_after_seconds(response.headers.get("retry-after")))


def read(model: type[M], response: httpx.Response) -> M:
    """The response as ``model``. Fields that a newer service adds are left out.

    Raises ``ClientError`` if the response is of another kind.
    """
    try:
        return _lenient(model, response.json())
    except (ValidationError, ValueError) as error:
        raise ClientError(
            f"{response.request.url} gave a response that is not a {model.__name__}: {error}. Check the address."
        ) from error


def _lenient(model: type[M], data: Any) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        if not all(problem["type"] == "extra_forbidden" for problem in problems):
            raise
        for *place, name in (problem["loc"] for problem in problems):
            del reduce(getitem, place, data)[name]
    return model.model_validate(data)


def decode_map(anomaly_map: AnomalyMap) -> np.ndarray:
    """The values of a map, ``(height, width)`` float32, in the units of the score.

    Exact for ``map="npy"``; rounded for ``"npy16"`` and ``"png"``.
    """
    data = io.BytesIO(base64.b64decode(anomaly_map.data))
    if anomaly_map.encoding == "npy":
        return np.load(data, allow_pickle=False).astype(np.float32)
    from PIL import Image as PillowImage

    stored = np.asarray(PillowImage.open(data)).astype(np.float32)
    return anomaly_map.minimum + stored / _UINT16_MAX * (anomaly_map.maximum - anomaly_map.minimum)
