"""Hand-made image files by the formats' specifications: variants that Pillow does not write."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["bmp", "gif", "png", "png_chunk", "tiff"]

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps of rows and columns, of the seven passes of an interlaced PNG."""


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(row: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Samples of one row side by side, the first in the high bits, filled up to whole bytes."""
    if bits == 16:
        return row.astype(f"{order}u2").tobytes()
    each = row.astype(np.uint16).ravel()[:, None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(each.astype(np.uint8).ravel()).tobytes()


def png(values: Any, bits: int, colour: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """A PNG of ``values`` ``(height, width)`` or ``(height, width, channels)`` in colour type ``colour``.

    ``chunks`` come before the pixels. Every row has the filter "Sub" (difference to the pixel before).
    """
    samples = np.atleast_3d(np.asarray(values, np.uint16))
    height, width, channels = samples.shape
    step = max(1, bits * channels // 8)
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [samples]
    rows = []
    for row in (row for part in parts if part.size for row in part):
        plain = np.frombuffer(packed(row, bits), np.uint8)
        before = np.concatenate([np.zeros(step, np.uint8), plain])[: len(plain)]
        rows.append(b"\1" + (plain - before).tobytes())
    pixels = zlib.compress(b"".join(rows), 1)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", pixels),
            png_chunk(b"IEND", b""),
        )
    )


def tiff(width: int, height: int, data: bytes, bits: Sequence[int], *, order: str = "<", **tags: Any) -> bytes:
    """A TIFF of one strip ``data``; further tags as ``t262=1``: short values, or a sequence of them."""
    entries: dict[int, Sequence[int]] = {256: [width], 257: [height], 258: bits, 259: [1], 273: [8], 277: [len(bits)]}
    entries |= {278: [height], 279: [len(data)]}
    for name, value in tags.items():
        entries[int(name[1:])] = value if isinstance(value, Sequence) else [value]
    body = data + b"\0" * (len(data) % 2)
    table, extra = b"", b""
    start = 8 + len(body)
    first_extra = start + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        values = entries[tag]
        kind, form = (4, "I") if tag in (273, 279) else (3, "H")
        content = struct.pack(f"{order}{len(values)}{form}", *values)
        table += struct.pack(f"{order}HHI", tag, kind, len(values))
        if len(content) <= 4:
            table += content.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", first_extra + len(extra))
            extra += content + b"\0" * (len(content) % 2)
    mark = b"II" if order == "<" else b"MM"
    header = mark + struct.pack(f"{order}HI", 42, start)
    return header + body + struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + extra


def bmp(width: int, height: int, bits: int, rows: Sequence[bytes], masks: Sequence[int] = ()) -> bytes:
    """A BMP with a header of version 4; ``rows`` from top to bottom, ``masks`` for red, green, blue and alpha."""
    body = b"".join(row + b"\0" * (-len(row) % 4) for row in reversed(rows))
    full = [*masks, 0, 0, 0, 0][:4]
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, bits, 3 if masks else 0, len(body), 0, 0, 0, 0)
    header += struct.pack("<4I", *full) + b"BGRs" + b"\0" * 48
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body


def gif(
    canvas: tuple[int, int],
    place: tuple[int, int, int, int],
    indices: Sequence[int],
    palette: bytes,
    *,
    background: int = 0,
    transparent: int | None = None,
) -> bytes:
    """A GIF of one frame at ``place`` (left, top, width, height) with four colours; codes are not compressed."""
    screen = struct.pack("<HHBBB", *canvas, 0x80 | 1, background, 0) + palette
    control = b"" if transparent is None else struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 1, 0, transparent, 0)
    # Three bits per code: a clear code (4) before every two pixels keeps them short; 5 ends the image.
    codes = [code for start in range(0, len(indices), 2) for code in (4, *indices[start : start + 2])] + [5]
    number = sum(code << 3 * position for position, code in enumerate(codes))
    data = number.to_bytes(-(-3 * len(codes) // 8), "little")
    image = struct.pack("<BHHHHB", 0x2C, *place, 0) + b"\2" + bytes([len(data)]) + data + b"\0"
    return b"GIF89a" + screen + control + image + b";"
