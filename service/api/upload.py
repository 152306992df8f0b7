"""Reading the image out of a request's body, never holding more of it than the limit allows."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from fastapi import HTTPException
from python_multipart.multipart import parse_options_header

from moleflow.service.api.form import FRAMING_BYTES, HOW_TO_SEND, FormReader, file_too_large

__all__ = ["Upload", "read_upload"]

_MAX_CONTENT_TYPE_BYTES = 1024
"""Of the header ``Content-Type``: a media type and a boundary of 70 bytes have room in it several times."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of the image's file, and the other fields of the form that it came in, in the form's order."""

    data: bytes
    fields: tuple[tuple[str, str], ...] = ()


async def read_upload(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> Upload:
    """The image from a body that arrives in ``chunks``.

    ``headers`` are looked up in lower case. Raises ``ImageTooLargeError`` as soon as the image has more than
    ``max_bytes``, or says that it will; ``HTTPException`` 415 for another kind of body and 422 when no image, or
    more than one, is in it. A ``Content-Length`` that lies, or none at all, changes nothing.
    """
    is_form, boundary = _kind_of_body(headers)
    most = max_bytes + (FRAMING_BYTES if is_form else 0)
    declared = headers.get("content-length", "")
    # Longer numbers are no size, and Python refuses to read those of thousands of digits.
    if declared.isdecimal() and (len(declared.lstrip("0")) > len(str(most)) or int(declared) > most):
        raise file_too_large(max_bytes)
    reader = FormReader(boundary, max_bytes) if is_form else None
    pieces: list[bytes] = []
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > most:
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
    # Joining megabytes takes milliseconds. In a thread Python lets the event loop run meanwhile.
    data = await asyncio.to_thread(b"".join, pieces)
    return Upload(data, tuple(reader.fields) if reader is not None else ())


def _kind_of_body(headers: Mapping[str, str]) -> tuple[bool, bytes]:
    """Whether the body is a form, and the boundary of its parts. ``HTTPException`` 415 for what is not read."""
    content_type = headers.get("content-type", "")
    if len(content_type) > _MAX_CONTENT_TYPE_BYTES:
        raise HTTPException(415, f"The Content-Type has {len(content_type):,} characters. {HOW_TO_SEND}")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"The body is sent with Content-Encoding {encoding!r}; send it without.")
    media_type, parameters = parse_options_header(content_type)
    is_form = media_type == b"multipart/form-data"
    if not is_form and media_type not in (b"", b"application/octet-stream") and not media_type.startswith(b"image/"):
        raise HTTPException(415, f"The body is of type {media_type.decode('latin-1')!r}. {HOW_TO_SEND}")
    return is_form, parameters.get(b"boundary", b"")
