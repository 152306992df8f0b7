"""From the bytes of an upload to the model's input: what the service demands beyond a readable picture."""

import re
from dataclasses import dataclass

import numpy as np

from model.errors import ImageTooLargeError, UnsupportedImageError
from model.picture import open_for_model, picture_format
from model.preprocessing import Preprocessing

__all__ = ["MAX_JPEG_SCANS", "MAX_SIDE", "Decoded", "decode"]

MAX_SIDE = 32_768
"""Longest side accepted, in pixels. An anomaly map needs memory for each row and column apart from its pixels, so a
picture one pixel high with millions of columns would cost far more than its pixel count says."""

MAX_JPEG_SCANS = 100
"""Most scans accepted in a JPEG. Encoders write about ten; the decoder passes over the whole picture for each, so a
small file with thousands of them would keep a thread busy for minutes."""

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
"""JPEG markers (ITU-T T.81, table B.1)."""

_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd8])")
"""A marker with a segment of its own, or the end: no stuffed zero, restart marker or other lone one (T.81, B.1.1)."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The model's input, ``(S, S, 3)`` uint8, and the size of the upright picture that it came from."""

    model_input: np.ndarray
    width: int
    height: int


def decode(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> Decoded:
    """Decode a picture and resize it for the model; the full-size pixels are let go.

    Raises ``UnsupportedImageError`` when the bytes are no picture that is read, ``ImageTooLargeError`` past the limits.
    """
    if picture_format(data) == "JPEG" and _has_too_many_scans(data):
        raise UnsupportedImageError(
            f"The picture is a JPEG of more than {MAX_JPEG_SCANS} scans, which takes too long to decode; "
            "save it again as an ordinary JPEG or as PNG."
        )
    picture = open_for_model(data, preprocessing.image_size, max_pixels=max_pixels)
    width, height = picture.width, picture.height
    if max(height, width) > MAX_SIDE:
        raise ImageTooLargeError(
            f"The picture has {width} × {height} pixels; no side may be longer than {MAX_SIDE:,}: cut it into pieces."
        )
    return Decoded(preprocessing.resize(picture.pixels), width, height)


def _has_too_many_scans(data: bytes) -> bool:
    """Walk a JPEG from marker to marker, up to its end or the first scan too many."""
    position, scans = 2, 0
    while (marker := _MARKER.search(data, position)) is not None:
        code = marker[1][0]
        if code == _END_OF_IMAGE:
            return False
        scans += code == _START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            return True
        # Every other marker is followed by the length of its segment, which is skipped: it may hold a thumbnail.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
