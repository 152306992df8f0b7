"""Worst-case GIF, BMP and WebP files. Each function makes one kind, about ``size`` bytes long."""

import functools
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.hostile.parts import LARGE, encoded, fill, noise, plain
from benchmarks.hostile.tiff_file import RATIONAL, Entry, tiff

__all__ = ["BMP", "GIF", "WEBP"]

# GIF89a


def gif(body: bytes, width: int = 64, height: int = 64) -> bytes:
    """A file with a grey palette and the given blocks."""
    palette = bytes(value for shade in range(256) for value in (shade,) * 3)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + palette + body + b";"


def gif_frame(data: bytes = b"\x02\x16\x01\0", box: tuple[int, int, int, int] = (0, 0, 1, 1)) -> bytes:
    """An image block; ``data`` are sub-blocks of LZW codes, here one pixel and the end."""
    return b"," + struct.pack("<HHHH", *box) + b"\0\x08" + data


def sub_blocks(data: bytes, length: int = 255) -> bytes:
    """Data in pieces of ``length``, closed by an empty one."""
    units = np.frombuffer(data[: max(length, len(data) // length * length)].ljust(length, b"\0"), np.uint8)
    rows = units.reshape(-1, length)
    return np.concatenate([np.full((len(rows), 1), length, np.uint8), rows], 1).tobytes() + b"\0"


def gif_blocks(unit: bytes) -> Callable[[int], bytes]:
    """Many blocks before the image."""
    return lambda size: gif(fill(unit, size) + _gif_whole())


def gif_frames(size: int) -> bytes:
    return gif(_gif_whole() + fill(gif_frame(), size))


def gif_offset(size: int) -> bytes:
    """A frame that begins outside the canvas, so that the canvas grows."""
    return gif(gif_frame(sub_blocks(noise(size)), (6000, 6000, 300, 300)))


def gif_far_offset(size: int) -> bytes:
    return gif(gif_frame(sub_blocks(noise(size)), (65_535, 65_535, 65_535, 65_535)))


def gif_codes(size: int) -> bytes:
    return gif(gif_frame(sub_blocks(noise(size)), (0, 0, *LARGE)), *LARGE)


def gif_clear_codes(size: int) -> bytes:
    """Only codes that clear the table: 256 in nine bits."""
    unit = sum(256 << (9 * n) for n in range(8)).to_bytes(9, "little")
    return gif(gif_frame(sub_blocks(fill(unit, size)), (0, 0, *LARGE)), *LARGE)


def gif_tiny_data(size: int) -> bytes:
    """Codes in sub-blocks of one byte."""
    return gif(gif_frame(sub_blocks(noise(size // 2), 1), (0, 0, *LARGE)), *LARGE)


def gif_bomb(size: int) -> bytes:
    return encoded(plain(*LARGE), "GIF") + bytes(size)


def _gif_whole() -> bytes:
    return gif_frame(sub_blocks(b"\x02\x16\x01"), (0, 0, 64, 64))


GIF: dict[str, Callable[[int], bytes]] = {
    "comments": gif_blocks(b"!\xfe\x01c\0"),
    "empty_comments": gif_blocks(b"!\xfe\0"),
    "applications": gif_blocks(b"!\xff\x0bNETSCAPE2.0\x03\1\0\0\0"),
    "controls": gif_blocks(b"!\xf9\x04\0\0\0\0\0"),
    "unknown_extensions": gif_blocks(b"!\1\0"),
    "zeros": gif_blocks(b"\0"),
    "texts": gif_blocks(b"!\1\1t\0"),
    "one_comment": lambda size: gif(b"!\xfe" + sub_blocks(bytes(size)) + _gif_whole()),
    "one_comment_of_bytes": lambda size: gif(b"!\xfe" + sub_blocks(bytes(size // 2), 1) + _gif_whole()),
    "one_extension_of_bytes": lambda size: gif(b"!\1" + sub_blocks(bytes(size // 2), 1) + _gif_whole()),
    "frames": gif_frames,
    "offset_frame": gif_offset,
    "far_offset_frame": gif_far_offset,
    "codes": gif_codes,
    "clear_codes": gif_clear_codes,
    "tiny_data": gif_tiny_data,
    "bomb": gif_bomb,
}

# BMP

RLE8, RLE4, BITFIELDS = 1, 2, 3
"""Compressions of Windows bitmaps."""


def bmp(
    data: bytes, width: int, height: int, bits: int, compression: int = 0, *, colours: int = 0, header: int = 40
) -> bytes:
    """A file with a palette of ``colours`` entries."""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    info = info.ljust(min(header, 200), b"\0")
    palette = (b"\0\0\0\0\1\1\1\0" * ((colours + 1) // 2))[: 4 * colours]
    if compression == BITFIELDS and header == 40:
        info += struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


def runs(unit: bytes, bits: int = 8) -> Callable[[int], bytes]:
    """40 megapixels of run-length codes."""
    compression = RLE8 if bits == 8 else RLE4
    return lambda size: bmp(fill(unit, size), *LARGE, bits, compression, colours=1 << bits)


def bmp_values(bits: int, compression: int = 0, header: int = 40) -> Callable[[int], bytes]:
    """A valid image of noise."""

    def make(size: int) -> bytes:
        side = max(8, int((size * 8 / bits) ** 0.5) // 32 * 32)
        side = min(side, LARGE[0])
        colours = 1 << bits if bits <= 8 else 0
        return bmp(noise(side * side * bits // 8), side, side, bits, compression, colours=colours, header=header)

    return make


def bmp_core(size: int) -> bytes:
    """The 12-byte header of OS/2 1."""
    side = min(max(8, int(size**0.5) // 4 * 4), LARGE[0])
    info = struct.pack("<IHHHH", 12, side, side, 1, 8) + bytes(768)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(info)) + info + noise(side * side)


def bmp_palette(size: int) -> bytes:
    return bmp(bytes(4096), 64, 64, 8, colours=min(size // 4, 65_536)) + bytes(size)


def bmp_endless_palette(size: int) -> bytes:
    return bmp(bytes(size), 64, 64, 8).replace(struct.pack("<II", 0, 0), struct.pack("<II", 2**31, 0), 1)


def bmp_far_data(size: int) -> bytes:
    data = bytearray(bmp(bytes(size), 64, 64, 24))
    data[10:14] = struct.pack("<I", 2**32 - 1)
    return bytes(data)


BMP: dict[str, Callable[[int], bytes]] = {
    "ends_of_lines": runs(b"\0\0"),
    "ends_of_lines_4": runs(b"\0\0", 4),
    "ones": runs(b"\1\7"),
    "ones_4": runs(b"\1\7", 4),
    "longest_runs": runs(b"\xff\7"),
    "longest_runs_4": runs(b"\xff\x12", 4),
    "still_deltas": runs(b"\0\2\0\0"),
    "far_deltas": runs(b"\0\2\xff\xff"),
    "literals": runs(b"\0\3abc\0"),
    "literals_4": runs(b"\0\3ab", 4),
    "ones_and_lines": runs(b"\1\7\0\0"),
    "empty_runs": lambda size: bmp(fill(b"\x01\x07", size), 1, LARGE[0] ** 2, 8, RLE8, colours=256),
    "values_1": bmp_values(1),
    "values_8": bmp_values(8),
    "values_16": bmp_values(16),
    "values_24": bmp_values(24),
    "values_32": bmp_values(32),
    "fields": bmp_values(32, BITFIELDS),
    "version_5": bmp_values(32, BITFIELDS, 124),
    "endless_header": bmp_values(24, header=2**31 - 1),
    "top_down": lambda size: bmp(bytes(size), 5000, -2000, 24),
    "core_header": bmp_core,
    "palette": bmp_palette,
    "endless_palette": bmp_endless_palette,
    "far_data": bmp_far_data,
    "zero_width": lambda size: bmp(bytes(size), 0, 2**31 - 1, 24),
}

# WebP


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def canvas(width: int, height: int, flags: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp_chunk(b"VP8X", struct.pack("<I", flags) + size)


PROFILE, ALPHA, EXIF, XMP, ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02
"""Flags of the extended header."""


@functools.cache
def webp_pixels(side: int = 64, lossless: bool = True) -> bytes:
    """The chunk of a plain image."""
    return encoded(plain(side, side, "RGB"), "WEBP", lossless=lossless)[12:]


def webp_frames(side: int) -> Callable[[int], bytes]:
    """Many frames on a canvas of ``side``."""
    frame = webp_chunk(b"ANMF", bytes(6) + b"\x3f\0\0\x3f\0\0" + b"\1\0\0\0" + webp_pixels())
    start = canvas(side, side, ANIMATION), webp_chunk(b"ANIM", bytes(6))
    return lambda size: riff(*start, fill(frame, size))


def webp_metadata(kind: bytes, flag: int, make: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """One chunk of metadata of ``size`` bytes and a small image."""
    if kind == b"ICCP":
        return lambda size: riff(canvas(64, 64, flag), webp_chunk(kind, make(size)), webp_pixels())
    return lambda size: riff(canvas(64, 64, flag), webp_pixels(), webp_chunk(kind, make(size)))


def webp_noise(size: int) -> bytes:
    """Lossless noise: about three bytes per pixel."""
    side = max(16, int((size / 3) ** 0.5))
    pixels = np.frombuffer(noise(side * side * 3), np.uint8).reshape(side, side, 3)
    return encoded(pixels, "WEBP", lossless=True, quality=0, method=0)


def webp_lossy_noise(size: int) -> bytes:
    """Lossy noise of 1.6 bytes per pixel, up to 2 MB: the first partition holds no more."""
    side = max(16, int((min(size, 2 * 2**20) / 1.6) ** 0.5))
    pixels = np.frombuffer(noise(side * side * 3), np.uint8).reshape(side, side, 3)
    return encoded(pixels, "WEBP", quality=100, method=0)


def webp_random_lossless(size: int) -> bytes:
    """Random codes for 16,383 × 2,440 pixels."""
    head = b"\x2f" + struct.pack("<I", (16_383 - 1) | (2440 - 1) << 14)
    return riff(webp_chunk(b"VP8L", head + noise(size)))


def webp_random_lossy(size: int) -> bytes:
    """Random codes for 16,383 × 2,440 pixels."""
    head = struct.pack("<I", 0x10 | (min(size, 500_000) << 5))[:3] + b"\x9d\x01\x2a" + struct.pack("<HH", 16_383, 2440)
    return riff(webp_chunk(b"VP8 ", head + noise(size)))


@functools.cache
def _webp_bomb(mode: str, lossless: bool) -> bytes:
    return encoded(Image.new(mode, (16_383, 2440)), "WEBP", lossless=lossless, quality=0, method=0)


def webp_bomb(mode: str, lossless: bool) -> Callable[[int], bytes]:
    return lambda size: _webp_bomb(mode, lossless) + bytes(size)


WEBP: dict[str, Callable[[int], bytes]] = {
    "frames": webp_frames(64),
    "frames_on_a_large_canvas": webp_frames(LARGE[0]),
    "frames_on_the_largest_canvas": webp_frames(16_384),
    "chunks": lambda size: riff(canvas(64, 64, 0), webp_pixels(), fill(webp_chunk(b"abcd"), size)),
    "chunks_before": lambda size: riff(canvas(64, 64, 0), fill(webp_chunk(b"abcd"), size), webp_pixels()),
    "profile": webp_metadata(b"ICCP", PROFILE, bytes),
    "text": webp_metadata(b"XMP ", XMP, bytes),
    "exif_rationals": webp_metadata(
        b"EXIF", EXIF, lambda size: tiff([Entry(0x0112, RATIONAL, size // 8, noise(size // 8 * 8))])
    ),
    "exif_overlapping": webp_metadata(
        b"EXIF", EXIF, lambda size: tiff([Entry(n, RATIONAL, size // 8, 8) for n in range(1, 65_000)], noise(size))
    ),
    "noise": webp_noise,
    "lossy_noise": webp_lossy_noise,
    "random_lossless": webp_random_lossless,
    "random_lossy": webp_random_lossy,
    "bomb": webp_bomb("RGBA", True),
    "lossy_bomb": webp_bomb("RGB", False),
}
