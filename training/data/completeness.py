"""Detection of truncated image files that still decode, because the decoder fills in what is missing.

A truncated JPEG with an end marker decodes without an error, its lower part mid-grey: libjpeg warns, but Pillow does
not pass that on. To find out whether the decoder ran out of data, filler bytes are inserted before the marker that ends
a scan: they are ignored if all blocks were decoded already, and change pixels if not. A file from an interrupted copy
may end in zeros.
"""

import io
import re
import struct
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import JpegImagePlugin

from moleflow.model.images.decode import image_format

__all__ = ["is_cut_off"]

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that ends scan data, in which 0xFF is stuffed with 0x00 and 0xFFD0…0xFFD7 are restart markers
(ITU-T T.81, B.1.1)."""

_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
"""Restart markers, numbered 0 to 7 cyclically; they reset the decoder's state."""

_EOI, _SOS, _DRI, _BASELINE = 0xD9, 0xDA, 0xDD, frozenset({0xC0, 0xC1})
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
"""Start-of-frame markers; the first two are sequential (ITU-T T.81, table B.1)."""

_FILLER = bytes(range(0x11, 0x77)) * 8
"""Data that decodes to something with any Huffman table: varied bits, no marker."""

_MISSING_LEVELS = (127, 128)
"""Values of blocks that were never decoded: mid-grey, rounded down if the file stores inverted values (CMYK)."""

_ZERO_TAIL = bytes(64)
"""Compressed data never end in this many zeros."""


def is_cut_off(data: bytes, values: np.ndarray) -> bool:
    """Whether an image file is truncated although it decodes to ``values``, ``(h, w)`` or ``(h, w, c)``.

    Other faults are left to the decoder.
    """
    match image_format(data):
        case "JPEG":
            return _is_jpeg_cut_off(data, values)
        case "PNG":
            return not _has_png_end(data)
        case "WebP" | "GIF":
            return data.endswith(_ZERO_TAIL)
    return False


@dataclass(slots=True)
class _Scans:
    """A JPEG's frame marker, the end of each scan's data with a filler for it, and how the file ends."""

    frame: int = 0
    ends: list[tuple[int, bytes]] = field(default_factory=list)
    stops_in: Literal["end marker", "scan", "segment"] = "segment"


def _is_jpeg_cut_off(data: bytes, values: np.ndarray) -> bool:
    scans = _jpeg_scans(data)
    if scans.stops_in == "segment" or (scans.stops_in == "scan" and data.endswith(_ZERO_TAIL)):
        return True
    # Sequential JPEGs are decoded block by block, so missing blocks are in the last corner: a fast path for most files.
    # All corners, as the image may have been rotated.
    corners = (values[y, x] for y in (0, -1) for x in (0, -1))
    if scans.frame in _BASELINE and not any(np.isin(corner, _MISSING_LEVELS).all() for corner in corners):
        return False
    parts, start = [], 0
    for end, filler in scans.ends:
        parts += [data[start:end], filler]
        start = end
    longer = b"".join([*parts, data[start:]])
    try:
        return not np.array_equal(_decoded(data), _decoded(longer))
    except Exception:  # the filler was decoded, to invalid data
        return True


def _jpeg_scans(data: bytes) -> _Scans:
    """Walk through a JPEG's segments and scan data."""
    scans, position, has_restarts = _Scans(), 2, False
    while position + 2 <= len(data):
        kind = data[position + 1]
        if data[position] != 0xFF:  # stray bytes between segments, which decoders skip
            following = data.find(b"\xff", position)
            position = following if following >= 0 else len(data)
        elif kind == _EOI:
            scans.stops_in = "end marker"
            break
        elif kind == 0xFF:
            position += 1
        elif kind in (0x00, 0x01) or 0xD0 <= kind <= 0xD8:  # markers without a segment
            position += 2
        elif position + 4 > len(data):
            break
        else:
            has_restarts |= kind == _DRI
            scans.frame = kind if kind in _FRAMES else scans.frame
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
            if kind == _SOS:
                position = _pass_over_scan(data, position, has_restarts, scans)
    return scans


def _pass_over_scan(data: bytes, start: int, has_restarts: bool, scans: _Scans) -> int:
    """Record the scan whose data begin at ``start``; returns the position of the marker after it."""
    found = _MARKER.search(data, start)
    position = end = found.start() if found else len(data)
    while data[end - 1] == 0xFF:  # fill bytes before the marker; in scan data 0xFF is followed by 0x00
        end -= 1
    filler = _FILLER
    if has_restarts:
        following = 0xD0 + len(_RESTART.findall(data, start, end)) % 8
        filler += bytes([0xFF, following]) + _FILLER
    scans.ends.append((end, filler))
    scans.stops_in = "segment" if found else "scan"
    return position


def _decoded(data: bytes) -> np.ndarray:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.load()
    return np.asarray(image)


def _has_png_end(data: bytes) -> bool:
    """Whether the chunks of a PNG follow one another up to ``IEND`` (PNG specification, third edition, section 5.3)."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + length
    return False
