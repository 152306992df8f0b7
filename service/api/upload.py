"""Extracting the image from a request body, within the size limit."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from fastapi import HTTPException
from python_multipart.multipart import parse_options_header

from moleflow.service.api.form import FRAMING_BYTES, HOW_TO_SEND, FormReader, file_too_large

__all__ = ["Upload", "read_upload"]

_MAX_CONTENT_TYPE_BYTES = 1024
"""Several times what a media type and a boundary of 70 bytes need."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The image file and the other form fields, in the order of the form."""

    data: bytes
    fields: tuple[tuple[str, str], ...] = ()


async def read_upload(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> Upload:
    """The image in a body that arrives in ``chunks``.

    ``headers`` are looked up in lower case. Raises ``ImageTooLargeError`` as soon as the image, or the declared length
    of the body, exceeds ``max_bytes``; ``HTTPException`` 415 for an unsupported kind of body and 422 for a body without
    an image, or with more than one. A wrong ``Content-Length`` does not bypass the limit.
    """
    is_form, boundary = _kind_of_body(headers)
    max_body_bytes = max_bytes + (FRAMING_BYTES if is_form else 0)
    declared = headers.get("content-length", "")
    # The digits are counted first because int() raises on thousands of them.
    if declared.isdecimal() and (
        len(declared.lstrip("0")) > len(str(max_body_bytes)) or int(declared) > max_body_bytes
    ):
        raise file_too_large(max_bytes)
    reader = FormReader(boundary, max_bytes) if is_form else None
    pieces: list[bytes] = []
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > max_body_bytes:
            raise file_too_large(max_bytes)
        if reader is None:
            pieces.append(chunk)
        else:
            reader.write(chunk)
    if reader is not None:
        reader.finish()
        pieces = reader.file
    elif not received:
        raise HTTPException(422, f"The body is empty. {HOW_TO_SEND}")
    # Joining megabytes takes milliseconds, so it is done in a thread.
    data = await asyncio.to_thread(b"".join, pieces)
    return Upload(data, tuple(reader.fields) if reader is not None else ())


def _kind_of_body(headers: Mapping[str, str]) -> tuple[bool, bytes]:
    """Whether the body is a form, and its boundary. Raises ``HTTPException`` 415 for unsupported kinds."""
    content_type = headers.get("content-type", "")
    if len(content_type) > _MAX_CONTENT_TYPE_BYTES:
        raise HTTPException(415, f"The Content-Type is too long ({len(content_type):,} characters). {HOW_TO_SEND}")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"Content-Encoding {encoding!r} is not supported; send the body unencoded.")
    media_type, parameters = parse_options_header(content_type)
    is_form = media_type == b"multipart/form-data"
    if not is_form and media_type not in (b"", b"application/octet-stream") and not media_type.startswith(b"image/"):
        raise HTTPException(415, f"Content-Type {media_type.decode('latin-1')!r} is not supported. {HOW_TO_SEND}")
    return is_form, parameters.get(b"boundary", b"")
