"""TIFF files from their fields.

Tags and types are those of TIFF 6.0, and of BigTIFF where a name says so.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "ASCII",
    "BYTE",
    "DOUBLE",
    "LONG",
    "LONG8",
    "RATIONAL",
    "SHORT",
    "UNDEFINED",
    "Entry",
    "image",
    "long",
    "repeated",
    "small",
    "start",
    "striped",
    "tiff",
]

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE, LONG8 = 1, 2, 3, 4, 5, 7, 12, 16
"""Types of values."""


class Entry(NamedTuple):
    """One field of a directory: ``number`` values of type ``kind``; ``data`` are their bytes, or an offset to them."""

    tag: int
    kind: int
    number: int
    data: bytes | int


def tiff(entries: Sequence[Entry], body: bytes = b"", *, big: bool = False, following: int = 0) -> bytes:
    """A file with one directory. ``body`` comes first, at ``start(big)``; values too large for a field come last."""
    head, count, field, inline = ("<2sHHHQ", "<Q", "<HHQ", 8) if big else ("<2sHI", "<H", "<HHI", 4)
    position = start(big) + len(body)
    parts = [struct.pack(head, b"II", 43, 8, 0, position) if big else struct.pack(head, b"II", 42, position), body]
    parts.append(struct.pack(count, len(entries)))
    free = position + struct.calcsize(count) + len(entries) * (struct.calcsize(field) + inline) + inline
    values = []
    for entry in sorted(entries):
        if isinstance(entry.data, int):
            value = entry.data.to_bytes(inline, "little")
        elif len(entry.data) <= inline:
            value = entry.data.ljust(inline, b"\0")
        else:
            value = free.to_bytes(inline, "little")
            values.append(entry.data)
            free += len(entry.data)
        parts.append(struct.pack(field, entry.tag, entry.kind, entry.number) + value)
    return b"".join([*parts, following.to_bytes(inline, "little"), *values])


def start(big: bool = False) -> int:
    """Offset of the first byte after the header."""
    return 16 if big else 8


def long(tag: int, *values: int) -> Entry:
    return Entry(tag, LONG, len(values), struct.pack(f"<{len(values)}I", *values))


def repeated(tag: int, count: int, value: int) -> Entry:
    """The same value for each of ``count`` strips or tiles."""
    return Entry(tag, LONG, count, struct.pack("<I", value) * count)


def image(
    width: int, height: int, *, compression: int = 1, bits: int = 8, photometric: int = 1, samples: int = 1
) -> list[Entry]:
    """The fields that every image has, without those of its strips."""
    return [
        long(256, width),
        long(257, height),
        long(258, *[bits] * samples),
        long(259, compression),
        long(262, photometric),
        long(277, samples),
    ]


def striped(data: bytes, width: int, height: int, **options: int) -> bytes:
    """An image with one strip, ``data``."""
    strips = [long(273, start()), long(278, height), long(279, len(data))]
    return tiff([*image(width, height, **options), *strips], data)


def small(*entries: Entry, following: int = 0) -> bytes:
    """A valid image of 64 × 64 with extra fields."""
    strips = [long(273, start()), long(278, 64), long(279, 4096)]
    return tiff([*image(64, 64), *strips, *entries], bytes(4096), following=following)
