"""Incremental parser for multipart forms (RFC 7578) with one file, or several, and a few short fields.

It runs in the event loop, so its cost is bounded up front: the number of parts, the header bytes of each part, and all
bytes outside the files. Inside a file the parser only searches for the boundary.
"""

import logging
from dataclasses import dataclass, field

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from moleflow.model.errors import ImageTooLargeError

__all__ = ["FILE_FIELD", "HOW_TO_SEND", "FormFile", "FormReader", "file_too_large", "framing_bytes"]

FILE_FIELD = "file"
"""Name of the form field that carries the image."""

_FRAMING_BYTES, _FRAMING_BYTES_PER_FILE = 63 * 1024, 1024
"""Limit for everything but the images: preamble, boundaries, headers, other fields, epilogue."""

_MAX_OTHER_PARTS = 15
"""More than the options that there are."""

_MAX_HEADERS, _MAX_HEADER_BYTES = 8, 4096
"""Limits for one part. RFC 7578 defines three headers; the longest value is a file name."""

_MAX_BOUNDARY_BYTES = 70
"""RFC 2046, section 5.1.1."""

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings are sent to the client as errors

HOW_TO_SEND = (
    f"Send the image's bytes as the body, with Content-Type image/* or application/octet-stream, "
    f"or a multipart form with the field {FILE_FIELD!r}."
)


def framing_bytes(max_files: int) -> int:
    """Most bytes outside the images of a form with so many."""
    return _FRAMING_BYTES + _FRAMING_BYTES_PER_FILE * max_files


@dataclass(slots=True)
class FormFile:
    """One image of a form: its file name, its bytes in pieces and their number.

    If it ``is_too_large``, the pieces are dropped.
    """

    name: str
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    is_too_large: bool = False


class FormReader:
    """Parses a form chunk by chunk. Afterwards ``files`` holds the images and ``fields`` all other fields.

    A form has exactly one image, or with ``max_files`` one to that many. Raises ``ImageTooLargeError`` as soon as a
    single image exceeds ``max_file_bytes`` (one of many is marked instead) or the rest of the form ``framing_bytes``,
    and ``HTTPException`` 422 for a malformed form.
    """

    def __init__(self, boundary: bytes, max_file_bytes: int, max_files: int | None = None) -> None:
        if not boundary:
            raise _malformed("the Content-Type has no boundary")
        if len(boundary) > _MAX_BOUNDARY_BYTES:
            raise _malformed(f"the boundary has {len(boundary)} bytes; at most {_MAX_BOUNDARY_BYTES} are allowed")
        self.files: list[FormFile] = []
        self.fields: list[tuple[str, str]] = []
        self._max_file_bytes, self._max_files = max_file_bytes, max_files
        self._max_parts = (max_files or 1) + _MAX_OTHER_PARTS
        self._max_framing = framing_bytes(max_files or 1)
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = self._parts = 0
        self._bytes = self._file_bytes = 0
        self._name: bytes | None = None
        self._file_name = b""
        self._value = bytearray()
        self._header_name = self._header_value = b""
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )

    def write(self, chunk: bytes) -> None:
        # The parser is slow on data that starts like a delimiter but is none (RFC 2046 forbids it): a file full of
        # that would take seconds.
        self._delimiters += chunk.count(self._delimiter)
        if self._delimiters > self._max_parts:
            raise _too_many_parts(self._max_parts)
        self._bytes += len(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error
        if self._bytes - self._file_bytes > self._max_framing:
            raise ImageTooLargeError(
                f"The form has more than {self._max_framing:,} bytes outside the field {FILE_FIELD!r}, which is the "
                "limit; send only images and options."
            )

    def finish(self) -> None:
        """Check that the form is complete and contains an image."""
        if not self._is_complete:
            raise _malformed("it ends before the closing boundary")
        if not self._file_bytes:
            what = "is empty" if self.files else "is missing"
            raise HTTPException(422, f"The form's field {FILE_FIELD!r} {what}. {HOW_TO_SEND}")

    @property
    def _is_file(self) -> bool:
        return self._name == FILE_FIELD.encode()

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise _too_many_parts(self._max_parts)
        self._name, self._file_name = None, b""
        self._value.clear()

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            self._name, self._file_name = options.get(b"name"), options.get(b"filename", b"")
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        if self._name is None:
            raise _malformed("one of its parts has no name (Content-Disposition: form-data; name=…)")
        if not self._is_file:
            return
        if self._max_files is None and self.files:
            raise HTTPException(
                422,
                f"The form has more than one field {FILE_FIELD!r}; send one image per request, or several to "
                "/predict/batch.",
            )
        if self._max_files is not None and len(self.files) >= self._max_files:
            raise HTTPException(
                422, f"The form has more than {self._max_files} images, which is the limit; send several requests."
            )
        self.files.append(FormFile(self._file_name.decode(errors="replace")))

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._value += data[start:end]
            return
        file = self.files[-1]
        file.size += end - start
        self._file_bytes += end - start
        if file.size <= self._max_file_bytes:
            file.pieces.append(data[start:end])
        elif self._max_files is None:
            raise file_too_large(self._max_file_bytes)
        else:
            file.is_too_large = True
            file.pieces.clear()

    def _end_part(self) -> None:
        if self._name is not None and not self._is_file:
            # Anything that is not UTF-8 matches no option and is rejected later.
            self.fields.append((self._name.decode(errors="replace"), self._value.decode(errors="replace")))

    def _end(self) -> None:
        self._is_complete = True


def file_too_large(max_bytes: int) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"The upload has more than {max_bytes:,} bytes, which is the limit; send a smaller image, or save it as JPEG "
        "or PNG."
    )


def _too_many_parts(most: int) -> HTTPException:
    return _malformed(f"it has more than {most} parts, or the boundary occurs inside a part")


def _malformed(reason: object) -> HTTPException:
    return HTTPException(422, f"The multipart form cannot be read: {str(reason).rstrip('.')}. {HOW_TO_SEND}")
