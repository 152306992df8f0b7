"""Reading the picture out of a request's body, never holding more of it than the limit allows."""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from model.errors import ImageTooLargeError

__all__ = ["FIELD", "FRAMING_BYTES", "read_upload"]

FIELD = "file"
"""Name of the multipart field that carries the picture."""

FRAMING_BYTES = 64 * 1024
"""What a multipart body may have beyond the picture: boundaries, headers and small fields that are passed over."""

_HOW_TO_SEND = (
    f"Send the picture's bytes as the body, with Content-Type image/* or application/octet-stream, "
    f"or a multipart form with the field {FIELD!r}."
)


class _Sink(Protocol):
    """Takes the body piece by piece, and gives the picture at the end."""

    def write(self, chunk: bytes) -> None: ...

    def finish(self) -> bytes: ...


async def read_upload(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """The picture's bytes from a body that arrives in ``chunks``.

    ``headers`` are looked up in lower case. Raises ``ImageTooLargeError`` as soon as the picture has more than
    ``max_bytes``, or says that it will; ``HTTPException`` 415 for another kind of body and 422 when no picture, or
    more than one, is in it. A ``Content-Length`` that lies, or none at all, changes nothing.
    """
    media_type, parameters = parse_options_header(headers.get("content-type", ""))
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"The body is sent with Content-Encoding {encoding!r}; send it without.")
    is_form = media_type == b"multipart/form-data"
    if not is_form and media_type not in (b"", b"application/octet-stream") and not media_type.startswith(b"image/"):
        raise HTTPException(415, f"The body is of type {media_type.decode('latin-1')!r}. {_HOW_TO_SEND}")
    most = max_bytes + (FRAMING_BYTES if is_form else 0)
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(max_bytes)
    sink = _FormFile(parameters.get(b"boundary", b""), max_bytes) if is_form else _WholeBody()
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > most:
            raise _too_large(max_bytes)
        sink.write(chunk)
    return sink.finish()


class _WholeBody:
    """The body is the picture."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def finish(self) -> bytes:
        data = b"".join(self._chunks)
        if not data:
            raise HTTPException(422, f"The body is empty. {_HOW_TO_SEND}")
        return data


class _FormFile:
    """The picture is one part of a multipart form; the other parts are passed over."""

    def __init__(self, boundary: bytes, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._picture = bytearray()
        self._found = 0
        self._is_picture = False
        self._is_complete = False
        self._header_name = self._header_value = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._take_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _broken_form(error) from error
        if not boundary:
            raise _broken_form("its Content-Type names no boundary")

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken_form(error) from error

    def finish(self) -> bytes:
        if not self._is_complete:
            raise _broken_form("it ends before its closing boundary")
        if self._found > 1:
            raise HTTPException(422, f"The form has {self._found} fields {FIELD!r}; send one picture a request.")
        if not self._picture:
            what = "is empty" if self._found else "is missing"
            raise HTTPException(422, f"The form's field {FIELD!r} {what}. {_HOW_TO_SEND}")
        return bytes(self._picture)

    def _begin_part(self) -> None:
        self._is_picture = False

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            self._is_picture = options.get(b"name") == FIELD.encode()
            self._found += self._is_picture
        self._header_name = self._header_value = b""

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_picture and self._found == 1:
            self._picture += data[start:end]
            if len(self._picture) > self._max_bytes:
                raise _too_large(self._max_bytes)

    def _end(self) -> None:
        self._is_complete = True


def _too_large(max_bytes: int) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"The upload has more than {max_bytes:,} bytes, which is the most that is accepted: send a smaller picture, "
        "or the same one as JPEG or PNG."
    )


def _broken_form(reason: object) -> HTTPException:
    return HTTPException(422, f"The multipart form cannot be read: {str(reason).rstrip('.')}. {_HOW_TO_SEND}")
