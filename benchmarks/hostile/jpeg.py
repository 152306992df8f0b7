"""Worst-case JPEG files. Each function makes one kind, about ``size`` bytes long.

Markers and segments are those of ITU-T T.81, annex B.
"""

import functools
import struct
from collections.abc import Callable

import numpy as np

from benchmarks.hostile.parts import LARGE, by_name, encoded, fill, noise, plain
from benchmarks.hostile.tiff_file import RATIONAL, Entry, tiff

__all__ = ["KINDS"]

START, END = b"\xff\xd8", b"\xff\xd9"
SOF_SEQUENTIAL, SOF_LOSSLESS, SOF_ARITHMETIC, SOF_PROGRESSIVE_ARITHMETIC = 0xC0, 0xC3, 0xC9, 0xCA

LONGEST_SEGMENT = 65_533
"""Bytes that a segment can hold; its length field counts itself."""

SCANS = 100
"""Number of scans that some decoders allow."""


def segment(marker: int, body: bytes = b"") -> bytes:
    """A marker, its length and its body."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def frame(marker: int, width: int, height: int, components: int = 1) -> bytes:
    """A frame header, 8 bits a sample, nothing subsampled."""
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, components) + parts)


def scan(components: int = 1, last: int = 63) -> bytes:
    """A scan header over coefficients 0…``last``."""
    parts = b"".join(bytes([number + 1, 0]) for number in range(components))
    return segment(0xDA, bytes([components]) + parts + bytes([0, last, 0]))


def entropy(size: int) -> bytes:
    """Random coded data without a marker."""
    return noise(size).replace(b"\xff", b"\xfe")


@functools.cache
def good(width: int = 64, height: int = 64) -> bytes:
    """A valid file."""
    return encoded(plain(width, height), "JPEG")


@functools.cache
def progressive(width: int, height: int) -> tuple[bytes, bytes]:
    """A progressive file without its end, and its last scan."""
    data = encoded(plain(width, height), "JPEG", progressive=True)[:-2]
    return data, data[data.rindex(b"\xff\xda") :]


def before_image(filling: bytes) -> bytes:
    """A valid file with something between its start and its first segment."""
    return START + filling + good()[2:]


def fill_bytes(size: int) -> bytes:
    return START + b"\xff" * size + b"\0"


def fill_bytes_before_image(size: int) -> bytes:
    return before_image(b"\xff" * size)


def zeros_before_image(size: int) -> bytes:
    return before_image(good()[2:20] + bytes(size))


def stuffed_zeros(size: int) -> bytes:
    return before_image(fill(b"\xff\0", size))


def restarts(size: int) -> bytes:
    return before_image(fill(b"\xff\xd0", size))


def comments(size: int) -> bytes:
    return before_image(fill(segment(0xFE), size))


def comments_after_image(size: int) -> bytes:
    return good()[:-2] + fill(segment(0xFE), size) + END


def huffman_tables(size: int) -> bytes:
    return before_image(fill(segment(0xC4, bytes(17)), size))


def empty_huffman_segments(size: int) -> bytes:
    return before_image(fill(segment(0xC4), size))


def quantisation_tables(size: int) -> bytes:
    return before_image(fill(segment(0xDB, b"\0" + b"\1" * 64), size))


def restart_intervals(size: int) -> bytes:
    return before_image(fill(segment(0xDD, b"\0\1"), size))


def frames(size: int) -> bytes:
    return before_image(fill(frame(SOF_SEQUENTIAL, 64, 64), size))


def profiles_and_frames(size: int) -> bytes:
    """Readers that assemble the colour profile at each frame header do so again and again."""
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1")
    return before_image(fill(profile, size // 2) + fill(frame(SOF_SEQUENTIAL, 64, 64), size // 2))


def profiles(size: int) -> bytes:
    return before_image(fill(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(100)), size))


def image_resources(size: int) -> bytes:
    block = b"8BIM" + struct.pack(">HBBI", 1, 0, 0, 0)
    return before_image(fill(segment(0xED, b"Photoshop 3.0\0" + fill(block, LONGEST_SEGMENT - 20)), size))


def application_segments(size: int) -> bytes:
    return before_image(fill(segment(0xEF), size))


def exif_pieces(size: int) -> bytes:
    """Readers that append each piece of EXIF to the earlier ones copy all of them each time."""
    return before_image(fill(segment(0xE1, b"Exif\0\0" + b"I"), size))


def exif_rationals(size: int) -> bytes:
    """One EXIF value of millions of rationals, over many segments."""
    block = tiff([Entry(0x0112, RATIONAL, size // 8, noise(size // 8 * 8))])
    pieces = (block[start : start + LONGEST_SEGMENT - 6] for start in range(0, len(block), LONGEST_SEGMENT - 6))
    return before_image(b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces))


def exif_overlapping(size: int) -> bytes:
    """Thousands of EXIF values that share the same bytes."""
    most = LONGEST_SEGMENT - 6
    count = most // 2 // 12
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", count)
    body += b"".join(
        struct.pack("<HHII", 0x9000 + n, RATIONAL, (most - 12 * count - 20) // 8, 14 + 12 * count) for n in range(count)
    ) + bytes(4)
    return before_image(segment(0xE1, b"Exif\0\0" + body.ljust(most, b"\1")) + fill(segment(0xFE, bytes(99)), size))


def exif_loop(size: int) -> bytes:
    """A directory that follows itself and contains itself."""
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    body += struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x014A, 4, 1, 8) + struct.pack("<I", 8)
    return before_image(segment(0xE1, b"Exif\0\0" + body) + fill(segment(0xFE, bytes(99)), size))


def many_scans(size: int) -> bytes:
    head, last = progressive(64, 64)
    return head + fill(last, size) + END


def many_scans_of_many_pixels(size: int) -> bytes:
    head, last = progressive(*LARGE)
    return head + fill(last, size) + END


def allowed_scans_of_many_pixels(size: int) -> bytes:
    """As many scans as some decoders allow; the rest is a comment."""
    head, last = progressive(*LARGE)
    more = SCANS - head.count(b"\xff\xda")
    return START + fill(segment(0xFE, bytes(60_000)), size) + head[2:] + last * more + END


def empty_scans(size: int) -> bytes:
    head, last = progressive(*LARGE)
    return head + fill(last[:10], size) + END


def sequential_scans(size: int) -> bytes:
    """Each component in a scan of its own, over and over."""
    data = good(4000, 4000)
    start = data.rindex(b"\xff\xda")
    return data[:-2] + fill(data[start:-2], size) + END


def coded(marker: int, size: int, width: int = LARGE[0], height: int = LARGE[1], components: int = 1) -> bytes:
    """Random data under a frame header of many pixels."""
    tables = good()[2 : good().index(b"\xff\xc0")] + good()[good().index(b"\xff\xc4") : good().index(b"\xff\xda")]
    last = 0 if marker == SOF_PROGRESSIVE_ARITHMETIC else 63
    return START + tables + frame(marker, width, height, components) + scan(components, last) + entropy(size) + END


def progressive_arithmetic_scans(size: int) -> bytes:
    data = coded(SOF_PROGRESSIVE_ARITHMETIC, 1000)
    refinement = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + entropy(1000)
    return data[:-2] + fill(refinement, size) + END


def restarts_in_scan(size: int) -> bytes:
    data = coded(SOF_SEQUENTIAL, 10)
    return data[:2] + segment(0xDD, b"\0\1") + data[2:-2] + fill(b"\xff\xd0\xff\xd1", size) + END


def height_after_image(size: int) -> bytes:
    """The frame header says 0 lines; their number comes after the scan."""
    return coded(SOF_SEQUENTIAL, size, 6000, 0)[:-2] + segment(0xDC, struct.pack(">H", 65_000)) + END


def noisy(size: int) -> bytes:
    """A valid file of noise: about 1.4 bytes per pixel."""
    side = max(16, int((size / 1.4) ** 0.5))
    pixels = np.frombuffer(noise(side * side), np.uint8).reshape(side, side)
    return encoded(pixels, "JPEG", quality=98)


def four_colours(size: int) -> bytes:
    return coded(SOF_SEQUENTIAL, size, components=4)


def four_colours_progressive(size: int) -> bytes:
    """Forty megapixels of four colours, whose coefficients are kept until the last scan."""
    return coded(0xC2, size, components=4)


def tall(size: int) -> bytes:
    return START + fill(segment(0xFE, bytes(60_000)), size) + encoded(plain(600, 65_500), "JPEG")[2:]


KINDS: dict[str, Callable[[int], bytes]] = {
    **by_name(
        fill_bytes,
        fill_bytes_before_image,
        zeros_before_image,
        stuffed_zeros,
        restarts,
        comments,
        comments_after_image,
        huffman_tables,
        empty_huffman_segments,
        quantisation_tables,
        restart_intervals,
        frames,
        profiles_and_frames,
        profiles,
        image_resources,
        application_segments,
        exif_pieces,
        exif_rationals,
        exif_overlapping,
        exif_loop,
        many_scans,
        many_scans_of_many_pixels,
        allowed_scans_of_many_pixels,
        empty_scans,
        sequential_scans,
        progressive_arithmetic_scans,
        restarts_in_scan,
        height_after_image,
        noisy,
        four_colours,
        four_colours_progressive,
        tall,
    ),
    "arithmetic": lambda size: coded(SOF_ARITHMETIC, size),
    "arithmetic_progressive": lambda size: coded(SOF_PROGRESSIVE_ARITHMETIC, size),
    "lossless": lambda size: coded(SOF_LOSSLESS, size),
}
