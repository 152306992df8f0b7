"""Worst-case PNG files. Each function makes one kind, about ``size`` bytes long."""

import functools
import struct
import zlib
from collections.abc import Callable

import numpy as np

from benchmarks.hostile.parts import LARGE, by_name, fill, noise
from benchmarks.hostile.tiff_file import RATIONAL, Entry, tiff

__all__ = ["KINDS", "chunk"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

GREY, RGB, PALETTE, RGBA = 0, 2, 3, 6
"""Colour types (PNG specification, section 11.2.1)."""


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def head(width: int, height: int, bits: int = 8, colour: int = GREY, interlaced: bool = False) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))


def whole(filling: bytes = b"", data: bytes | None = None, after: bytes = b"") -> bytes:
    """64 × 64 pixels, with chunks before and after the pixels."""
    pixels = chunk(b"IDAT", zlib.compress(bytes(65 * 64)) if data is None else data)
    return head(64, 64) + filling + pixels + after + chunk(b"IEND")


def before(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: whole(fill(unit, size))


def after(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: whole(after=fill(unit, size))


def tiny_data_chunks(size: int) -> bytes:
    """Compressed pixels, one byte per chunk."""
    data = zlib.compress(noise(65 * 64), 0)
    pieces = b"".join(chunk(b"IDAT", data[n : n + 1]) for n in range(len(data)))
    return head(64, 64) + fill(chunk(b"IDAT"), size) + pieces + chunk(b"IEND")


def stored_tiny_data_chunks(size: int) -> bytes:
    """Uncompressed pixels, one byte per chunk."""
    side = max(8, int((size / 13) ** 0.5))
    data = np.frombuffer(zlib.compress(bytes(side * (side + 1)), 0), np.uint8)
    rows = np.zeros((len(data), 13), np.uint8)
    rows[:, :8] = np.frombuffer(struct.pack(">I", 1) + b"IDAT", np.uint8)
    rows[:, 8] = data
    checksums = np.array([zlib.crc32(b"IDAT" + bytes([value])) for value in range(256)], ">u4")
    rows[:, 9:] = checksums[data].view(np.uint8).reshape(-1, 4)
    return head(side, side) + rows.tobytes() + chunk(b"IEND")


def compressed_text(size: int) -> bytes:
    """Chunks that unpack to a thousand times their size."""
    return whole(fill(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20), 9)), size))


def compressed_unicode_text(size: int) -> bytes:
    return whole(fill(chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(1 << 20), 9)), size))


def one_compressed_text(size: int) -> bytes:
    return whole(chunk(b"zTXt", b"k\0\0" + _bomb(size)))


def profiles(size: int) -> bytes:
    """Many colour profiles, though only one is allowed; each is unpacked."""
    return whole(fill(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1_000_000), 9)), size))


def one_profile(size: int) -> bytes:
    return whole(chunk(b"iCCP", b"k\0\0" + _bomb(size)))


def exif_rationals(size: int) -> bytes:
    return whole(chunk(b"eXIf", tiff([Entry(0x0112, RATIONAL, size // 8, noise(size // 8 * 8))])))


def exif_overlapping(size: int) -> bytes:
    """64,000 values that share the same bytes."""
    count = max(1, (size - 12 * 64_000) // 8)
    entries = [Entry(number, RATIONAL, count, 8) for number in range(1000, 65_000)]
    return whole(chunk(b"eXIf", tiff(entries, noise(count * 8))))


def exif_as_text(size: int) -> bytes:
    """EXIF in hexadecimal, as some editors write it."""
    text = b"\nexif\n" + str(size // 2).rjust(8).encode() + b"\n" + b"00" * min(size // 2, 500_000)
    return whole(fill(chunk(b"tEXt", b"Raw profile type exif\0" + text), size))


def exif_as_compressed_text(size: int) -> bytes:
    text = b"\nexif\n 500000\n" + b"00" * 500_000
    return whole(fill(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text, 9)), size))


def rows(width: int, height: int, bits: int, colour: int, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """An image of zeros, as small as possible."""
    bytes_per_pixel = {GREY: 1, PALETTE: 1, RGB: 3, RGBA: 4}[colour] * bits / 8
    data = _zeros(int((int(width * bytes_per_pixel) + 1) * height * (1.01 if interlaced else 1)) + 100_000)
    return head(width, height, bits, colour, interlaced) + extra + chunk(b"IDAT", data)


def sized(width: int, height: int, bits: int, colour: int, *, interlaced: bool = False, extra: bytes = b"") -> Callable:
    """Such an image, padded to the size with one unknown chunk."""

    @functools.cache
    def image() -> bytes:
        return rows(width, height, bits, colour, interlaced, extra)

    return lambda size: image() + chunk(b"fiLl", bytes(size)) + chunk(b"IEND")


def noisy(size: int) -> bytes:
    """Valid noise, every row with the slowest filter."""
    side = max(8, int((size / 8) ** 0.5))
    values = np.frombuffer(noise(side * side * 8), np.uint8).reshape(side, -1)
    lines = np.concatenate([np.full((side, 1), 4, np.uint8), values], 1)
    return head(side, side, 16, RGBA) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 0)) + chunk(b"IEND")


def noisy_interlaced(size: int) -> bytes:
    side = max(8, int(size**0.5))
    return head(side, side, interlaced=True) + chunk(b"IDAT", zlib.compress(bytes(int(size * 1.1)), 0)) + chunk(b"IEND")


def data_bomb(size: int) -> bytes:
    """Gigabytes of pixels after those of 64 × 64."""
    return whole(data=_bomb(size))


def empty_blocks(size: int) -> bytes:
    """Compressed data of empty blocks, five bytes each."""
    return whole(data=b"\x78\x9c" + fill(b"\0\0\0\xff\xff", size))


def empty_huffman_blocks(size: int) -> bytes:
    """Empty blocks with the fixed code: ten bits each, so four of them are five bytes."""
    block = "0100000000"  # not the last, fixed code (bits 0, 1, 0), end of block (seven zeros): RFC 1951, section 3.2
    bits = block * 4
    unit = bytes(int(bits[n : n + 8][::-1], 2) for n in range(0, 40, 8))
    return whole(data=b"\x78\x9c" + fill(unit, size))


def animation(size: int) -> bytes:
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 1, 0, 0))
    frame = control + chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(bytes(65 * 64)))
    start = head(64, 64) + chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + control + whole()[33:-12]
    return start + fill(frame, size) + chunk(b"IEND")


def animation_first(size: int) -> bytes:
    """Frames before the image that they animate."""
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 1, 0, 0))
    return whole(chunk(b"acTL", struct.pack(">II", 2, 0)) + fill(control, size))


def length_that_lies(size: int) -> bytes:
    """A chunk that announces 2 GiB."""
    return whole(struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(size))


@functools.cache
def _zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


@functools.lru_cache(1)
def _bomb(size: int) -> bytes:
    """``size`` bytes that unpack to a thousand times as many."""
    block = zlib.compressobj(9, wbits=-15)
    unit = block.compress(bytes(1 << 24)) + block.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + fill(unit, size)


KINDS: dict[str, Callable[[int], bytes]] = {
    **by_name(
        tiny_data_chunks,
        stored_tiny_data_chunks,
        compressed_text,
        compressed_unicode_text,
        one_compressed_text,
        profiles,
        one_profile,
        exif_rationals,
        exif_overlapping,
        exif_as_text,
        exif_as_compressed_text,
        noisy,
        noisy_interlaced,
        data_bomb,
        empty_blocks,
        empty_huffman_blocks,
        animation,
        animation_first,
        length_that_lies,
    ),
    "unknown_chunks": before(chunk(b"abCd")),
    "unknown_chunks_after": after(chunk(b"abCd")),
    "texts": before(chunk(b"tEXt", b"k\0v")),
    "texts_after": after(chunk(b"tEXt", b"k\0v")),
    "palettes": before(chunk(b"PLTE", bytes(768))),
    "transparencies": before(chunk(b"tRNS", b"\0\0")),
    "gammas": before(chunk(b"gAMA", bytes(4))),
    "resolutions": before(chunk(b"pHYs", bytes(9))),
    "exif_chunks": before(chunk(b"eXIf", b"II*\0\x08\0\0\0")),
    "headers": before(head(64, 64)[8:]),
    "one_row": sized(LARGE[0] ** 2, 1, 8, RGB),
    "one_column": sized(1, LARGE[0] ** 2, 8, GREY),
    "longest_side": sized(32_768, 1200, 8, RGB),
    "interlaced": sized(*LARGE, 8, RGBA, interlaced=True),
    "interlaced_16_bit": sized(*LARGE, 16, RGBA, interlaced=True),
    "deep": sized(*LARGE, 16, RGBA),
    "deep_grey": sized(*LARGE, 16, GREY),
    "interlaced_bits": sized(*LARGE, 1, GREY, interlaced=True),
    "transparent_palette": sized(*LARGE, 8, PALETTE, extra=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256))),
    "colour_key": sized(*LARGE, 8, RGB, extra=chunk(b"tRNS", bytes(6))),
}
