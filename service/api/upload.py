"""Extracting the image, or several, from a request body, within the size limits."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from fastapi import HTTPException
from python_multipart.multipart import parse_options_header

from moleflow.model.errors import ImageTooLargeError
from moleflow.service.api.form import HOW_TO_SEND, FormFile, FormReader, file_too_large, framing_bytes

__all__ = ["Upload", "Uploads", "read_files", "read_upload", "read_uploads"]

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
    limit = _Limit(headers, max_bytes + (framing_bytes(1) if is_form else 0), file_too_large(max_bytes))
    reader = FormReader(boundary, max_bytes) if is_form else None
    pieces: list[bytes] = []
    async for chunk in chunks:
        limit.add(len(chunk))
        if reader is None:
            pieces.append(chunk)
        else:
            reader.write(chunk)
    if reader is not None:
        reader.finish()
        pieces = reader.files[0].pieces
    elif not limit.received:
        raise HTTPException(422, f"The body is empty. {HOW_TO_SEND}")
    # Joining megabytes takes milliseconds, so it is done in a thread.
    data = await asyncio.to_thread(b"".join, pieces)
    return Upload(data, tuple(reader.fields) if reader is not None else ())


@dataclass(frozen=True, slots=True)
class Uploads:
    """The images of a form, and its other fields, both in the order of the form."""

    files: tuple[FormFile, ...]
    fields: tuple[tuple[str, str], ...]


async def read_uploads(
    headers: Mapping[str, str], chunks: AsyncIterator[bytes], *, max_files: int, max_file_bytes: int, max_bytes: int
) -> Uploads:
    """The images of a form with at most ``max_files`` and ``max_bytes`` in all; raises as ``read_upload``.

    An image of more than ``max_file_bytes`` is marked as too large instead, so that it does not cost the others.
    """
    is_form, boundary = _kind_of_body(headers)
    if not is_form:
        raise HTTPException(415, "Several images are sent as a multipart form, each as a field 'file'.")
    too_large = ImageTooLargeError(
        f"The images have more than {max_bytes:,} bytes in all, which is the limit; send fewer in one request."
    )
    limit = _Limit(headers, max_bytes + framing_bytes(max_files), too_large)
    reader = FormReader(boundary, max_file_bytes, max_files)
    async for chunk in chunks:
        limit.add(len(chunk))
        reader.write(chunk)
    reader.finish()
    return Uploads(tuple(reader.files), tuple(reader.fields))


_ARCHIVES = frozenset({b"application/zip", b"application/x-zip-compressed"})


async def read_files(
    headers: Mapping[str, str], chunks: AsyncIterator[bytes], *, max_files: int, max_bytes: int
) -> tuple[FormFile, ...]:
    """The files of a form, or the body as the only one: images, or archives of them; raises as ``read_uploads``.

    Nothing else bounds the size of one file.
    """
    is_form, boundary = _kind_of_body(headers, _ARCHIVES)
    too_large = ImageTooLargeError(f"The files have more than {max_bytes:,} bytes in all; send fewer in one request.")
    limit = _Limit(headers, max_bytes + (framing_bytes(max_files) if is_form else 0), too_large)
    reader, body = FormReader(boundary, max_bytes, max_files) if is_form else None, FormFile("")
    async for chunk in chunks:
        limit.add(len(chunk))
        if reader is not None:
            reader.write(chunk)
        else:
            body.pieces.append(chunk)
            body.size += len(chunk)
    if reader is None:
        if not body.size:
            raise HTTPException(422, "The body is empty. Send images or an archive of them.")
        return (body,)
    reader.finish()
    if reader.fields:
        raise HTTPException(422, f"The form has a field {reader.fields[0][0][:100]!r}; it takes only files.")
    return tuple(reader.files)


class _Limit:
    """Counts bytes and raises ``too_large`` beyond ``most``, at once if the declared length says so."""

    def __init__(self, headers: Mapping[str, str], most: int, too_large: Exception) -> None:
        self._most, self._too_large, self.received = most, too_large, 0
        declared = headers.get("content-length", "")
        # The digits are counted first because int() raises on thousands of them.
        if declared.isdecimal() and (len(declared.lstrip("0")) > len(str(most)) or int(declared) > most):
            raise too_large

    def add(self, count: int) -> None:
        self.received += count
        if self.received > self._most:
            raise self._too_large


def _kind_of_body(headers: Mapping[str, str], more: frozenset[bytes] = frozenset()) -> tuple[bool, bytes]:
    """Whether the body is a form, and its boundary. Raises ``HTTPException`` 415 for unsupported kinds, except
    ``more``."""
    content_type = headers.get("content-type", "")
    if len(content_type) > _MAX_CONTENT_TYPE_BYTES:
        raise HTTPException(415, f"The Content-Type is too long ({len(content_type):,} characters). {HOW_TO_SEND}")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"Content-Encoding {encoding!r} is not supported; send the body unencoded.")
    media_type, parameters = parse_options_header(content_type)
    is_form = media_type == b"multipart/form-data"
    raw = {b"", b"application/octet-stream", *more}
    if not is_form and media_type not in raw and not media_type.startswith(b"image/"):
        raise HTTPException(415, f"Content-Type {media_type.decode('latin-1')!r} is not supported. {HOW_TO_SEND}")
    return is_form, parameters.get(b"boundary", b"")
