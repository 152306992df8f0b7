"""Requests of the Open Inference Protocol: from JSON, and binary data behind it, to image files."""

import binascii
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import numpy as np
from fastapi import HTTPException
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moleflow.model.errors import ImageTooLargeError
from moleflow.service.api.form import file_too_large
from moleflow.service.settings import Settings

__all__ = ["INPUT", "LENGTH_HEADER", "InferRequest", "max_body_bytes", "parse_request"]

LENGTH_HEADER = "Inference-Header-Content-Length"
"""Bytes of JSON before the binary data, in requests and responses (binary tensor data extension)."""

INPUT = "image"
"""The only input."""

_MAX_JSON_OVERHEAD = 64 * 1024
"""Bytes of JSON beside the data."""

_MAX_JSON_NUMBERS = 1_000_000
"""Parsing a million numbers takes a tenth of a second, during which Python does nothing else."""

_MAX_SIZE = 2**31
"""Of a dimension and of data: more than any limit allows."""

_LENGTH_BYTES = 4
"""Before each element of a BYTES tensor (binary tensor data extension)."""

_MAX_PROBLEMS = 3
"""How many problems of one request are explained."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Parameters(_Part):
    """Of the whole request."""

    binary_data_output: bool = False
    false_alarm_rate: float | None = Field(None, gt=0, lt=1)


class _InputParameters(_Part):
    binary_data_size: int | None = Field(None, ge=0, le=_MAX_SIZE)


class _OutputParameters(_Part):
    binary_data: bool | None = None


class _Input(_Part):
    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=_MAX_SIZE)]], Field(min_length=1, max_length=4)]
    datatype: str
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None


class _Output(_Part):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Document(_Part):
    """The JSON of a request."""

    id: str | None = None
    parameters: _Parameters = _Parameters()
    inputs: list[_Input]
    outputs: list[_Output] | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is asked for: images as files or as pixels ``(height, width, 3)`` uint8.

    ``outputs`` are the wanted ones with whether each is binary, or ``None`` for all; ``is_binary`` is the default.
    """

    identifier: str | None
    false_alarm_rate: float | None
    images: Sequence["bytes | np.ndarray"]
    outputs: tuple[tuple[str, bool], ...] | None
    is_binary: bool

    def file(self, index: int) -> bytes:
        """An image as a file; pixels become a BMP, which keeps them as they are."""
        image = self.images[index]
        if isinstance(image, bytes):
            return image
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "BMP")
        return buffer.getvalue()


def max_body_bytes(settings: Settings) -> int:
    """Most bytes of a request, which may hold as many images as one to ``/predict/batch``."""
    return max(settings.max_request_bytes, _max_json_bytes(settings)) + _MAX_JSON_OVERHEAD


def parse_request(body: bytes, json_length: str | None, settings: Settings) -> InferRequest:
    """The request in a body whose header ``Inference-Header-Content-Length`` is ``json_length``.

    Takes time in proportion to the body. Raises ``HTTPException`` 400, and ``ImageTooLargeError`` for an image, or
    JSON, of more than ``max_upload_bytes``.
    """
    document, binary = _read_document(body, json_length, settings)
    if len(document.inputs) != 1 or document.inputs[0].name != INPUT:
        names = ", ".join(repr(each.name[:40]) for each in document.inputs[:_MAX_PROBLEMS])
        _refuse(f"The inputs are {names or 'missing'}; there must be one, {INPUT!r}")
    given = document.inputs[0]
    if (given.data is None) == (given.parameters.binary_data_size is None):
        _refuse(f"The input {INPUT!r} must have either data or the parameter binary_data_size")
    if (given.parameters.binary_data_size or 0) != len(binary):
        _refuse(
            f"The parameter binary_data_size is {given.parameters.binary_data_size or 0}, but {len(binary)} bytes "
            f"follow the JSON, whose length {LENGTH_HEADER} gives"
        )
    if given.datatype == "BYTES":
        images: list[bytes | np.ndarray] = list(_files(given, binary, settings))
    elif given.datatype == "UINT8":
        images = list(_pixels(given, binary, settings))
    else:
        _refuse(f"The datatype is {given.datatype[:40]!r}; use BYTES for image files, or UINT8 for RGB pixels")
    default = document.parameters.binary_data_output
    wanted = None
    if document.outputs is not None:
        wanted = tuple(
            (each.name, default if each.parameters.binary_data is None else each.parameters.binary_data)
            for each in document.outputs
        )
    return InferRequest(document.id, document.parameters.false_alarm_rate, images, wanted, default)


def _max_json_bytes(settings: Settings) -> int:
    """Most bytes of JSON: one image of the largest size in base64, which takes 4 bytes for 3."""
    return 4 * math.ceil(settings.max_upload_bytes / 3)


def _read_document(body: bytes, json_length: str | None, settings: Settings) -> tuple[_Document, memoryview]:
    """The JSON, and what follows it."""
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 16):
            _refuse(f"{LENGTH_HEADER} is {json_length[:40]!r}, which is no number of bytes")
        length = int(json_length)
        if length > len(body):
            _refuse(f"{LENGTH_HEADER} is {length}, but the body has {len(body)} bytes")
    if length > _max_json_bytes(settings) + _MAX_JSON_OVERHEAD:
        raise ImageTooLargeError(
            f"The request has {length:,} bytes of JSON; images in it may have {settings.max_upload_bytes:,} bytes in "
            "all. Send them as binary data."
        )
    text = body[:length] if length < len(body) else body
    if text.count(b",") > _MAX_JSON_NUMBERS:
        raise ImageTooLargeError(
            f"The JSON has more than {_MAX_JSON_NUMBERS:,} values, which is the limit; send the tensor as binary data."
        )
    try:
        return _Document.model_validate_json(text), memoryview(body)[length:]
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, each['loc'])) or 'the body'}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)[:_MAX_PROBLEMS]
        )
        _refuse(f"The request is no inference request ({'; '.join(problems)})")


def _files(given: _Input, binary: memoryview, settings: Settings) -> Iterator[bytes]:
    """The elements of a BYTES tensor."""
    count = math.prod(given.shape)
    _check_count(count, settings)
    if len(given.shape) > 2 or given.shape[1:] not in ([], [1]):
        _refuse(f"The shape is {given.shape}; that of image files is [N] or [N, 1]")
    if given.data is None:
        elements = _binary_elements(binary, count)
    else:
        flat = [each for row in given.data for each in (row if isinstance(row, list) else [row])]
        if len(flat) != count:
            _refuse(f"The data has {len(flat)} elements, but the shape is {given.shape}")
        elements = map(_from_base64, flat)
    for element in elements:
        if not element:
            _refuse("An image file is empty")
        if len(element) > settings.max_upload_bytes:
            raise file_too_large(settings.max_upload_bytes)
        yield element


def _binary_elements(binary: memoryview, count: int) -> Iterator[bytes]:
    position = 0
    for _ in range(count):
        start = position + _LENGTH_BYTES
        end = start + int.from_bytes(binary[position:start], "little")
        if start > len(binary) or end > len(binary):
            _refuse(f"The binary data ends inside an element; the shape says that there are {count}")
        yield bytes(binary[start:end])
        position = end
    if position != len(binary):
        _refuse(f"The binary data has {len(binary) - position} bytes after the last of {count} elements")


def _from_base64(element: Any) -> bytes:
    try:
        return binascii.a2b_base64(element, strict_mode=True)
    except (TypeError, ValueError):
        _refuse("An image in JSON must be a string in base64; send files as binary data to avoid that")


def _pixels(given: _Input, binary: memoryview, settings: Settings) -> Iterator[np.ndarray]:
    """The images of a UINT8 tensor, each ``(height, width, 3)``."""
    shape = given.shape if len(given.shape) == 4 else [1, *given.shape]
    if len(shape) != 4 or shape[3] != 3:
        _refuse(f"The shape is {given.shape}; that of pixels is [height, width, 3] or [N, height, width, 3]")
    _check_count(shape[0], settings)
    if math.prod(shape[1:]) > settings.max_upload_bytes:
        raise file_too_large(settings.max_upload_bytes)
    values = np.frombuffer(binary, np.uint8) if given.data is None else _as_bytes(given.data)
    if values.size != math.prod(shape):
        _refuse(f"The data has {values.size} values, but the shape is {given.shape}")
    yield from values.reshape(shape)


def _as_bytes(data: list[Any]) -> np.ndarray:
    """Numbers of JSON, nested or not, as uint8."""
    try:
        values = np.asarray(data)
    except ValueError:
        values = np.empty(0, object)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        _refuse("The data of a UINT8 tensor must be whole numbers from 0 to 255, flat or nested as the shape says")
    return values.astype(np.uint8)


def _check_count(count: int, settings: Settings) -> None:
    if count > settings.max_request_images:
        _refuse(f"The request has {count:,} images; the limit is {settings.max_request_images}. Send several requests")


def _refuse(reason: str) -> NoReturn:
    raise HTTPException(400, f"{reason}.")
