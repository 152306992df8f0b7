"""Worst-case TIFF files. Each function makes one kind, about ``size`` bytes long."""

import functools
import lzma
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.hostile.parts import LARGE, by_name, encoded, fill, noise, plain
from benchmarks.hostile.tiff_file import (
    ASCII,
    BYTE,
    DOUBLE,
    LONG,
    LONG8,
    RATIONAL,
    SHORT,
    UNDEFINED,
    Entry,
    image,
    long,
    repeated,
    small,
    start,
    striped,
    tiff,
)

__all__ = ["KINDS"]

DEFLATE, PACKBITS, LZW, LZMA, ZSTD = 8, 32773, 5, 34925, 50000
"""Compressions."""

MOST_ENTRIES = 65_535
"""Entries of one directory, whose count has two bytes."""


def giant_tile(size: int, compression: int = DEFLATE) -> bytes:
    """One tile of 46,336² for 64 × 64 pixels."""
    tiles = [long(322, 46_336), long(323, 46_336), long(324, start()), long(325, size)]
    data = zlib.compress(bytes(4096)).ljust(size, b"\0") if compression == DEFLATE else bytes(size)
    return tiff([*image(64, 64, compression=compression), *tiles], data)


def giant_strip(size: int) -> bytes:
    """A strip of 2³² - 1 rows for an image of 64."""
    strips = [long(273, start()), long(278, 2**32 - 1), long(279, size)]
    return tiff([*image(64, 64, compression=DEFLATE), *strips], zlib.compress(bytes(4096)).ljust(size, b"\0"))


def strips(size: int, compression: int = 1) -> bytes:
    """A strip for each row of one pixel, as many as fit."""
    rows = min(max(1, size // 8), 30_000_000)
    data = b"\0" if compression == 1 else zlib.compress(b"\0")
    table = [repeated(273, rows, start()), long(278, 1), repeated(279, rows, len(data))]
    return tiff([*image(1, rows, compression=compression), *table], data)


def shared_strip(size: int, compression: int = DEFLATE) -> bytes:
    """6,320 rows, each a strip, that share the same bytes."""
    width, rows = LARGE
    data = zlib.compress(bytes(width)).ljust(max(100, size - 8 * rows), b"\0")
    table = [repeated(273, rows, start()), long(278, 1), repeated(279, rows, len(data))]
    return tiff([*image(width, rows, compression=compression), *table], data)


def tiny_tiles(size: int) -> bytes:
    """Tiles of 16 × 16 that share the same bytes."""
    count = (LARGE[0] // 16) ** 2
    data = zlib.compress(bytes(256)).ljust(max(100, size - 8 * count), b"\0")
    tiles = [long(322, 16), long(323, 16), repeated(324, count, start()), repeated(325, count, len(data))]
    return tiff([*image(*LARGE, compression=DEFLATE), *tiles], data)


def values(kind: int, width: int, tag: int = 0x9999) -> Callable[[int], bytes]:
    """A field with millions of values of ``width`` bytes."""
    return lambda size: small(Entry(tag, kind, size // width, noise(size // width * width)))


def bits_per_sample(size: int) -> bytes:
    """A required field with millions of values."""
    fields = [entry for entry in image(64, 64) if entry.tag != 258]
    strip = [long(273, start()), long(278, 64), long(279, 4096)]
    return tiff([*fields, *strip, Entry(258, SHORT, size // 2, b"\x08\0" * (size // 2))], bytes(4096))


def overlapping_values(size: int) -> bytes:
    """65,000 fields whose values share the same bytes."""
    body = bytes(4096) + noise(max(8, size - 12 * MOST_ENTRIES) // 8 * 8)
    strip = [long(273, start()), long(278, 64), long(279, 4096)]
    count = (len(body) - 4096) // 8
    more = [Entry(number, RATIONAL, count, start() + 4096) for number in range(1000, MOST_ENTRIES)]
    return tiff([*image(64, 64), *strip, *more], body)


def looping_directory(size: int) -> bytes:
    """A directory that follows itself and contains itself as EXIF, GPS and SubIFDs."""
    inside = [Entry(tag, LONG, 1, start() + 4096) for tag in (330, 34665, 34853, 40965)]
    return small(*inside, following=start() + 4096) + bytes(size)


def chained_directories(size: int) -> bytes:
    """A chain of millions of directories with one field each."""
    data = small()
    first = len(data)
    step = 18
    at = first + step * np.arange(1, max(2, size // step) + 1, dtype="<u4")
    rows = np.zeros((len(at), step), np.uint8)
    rows[:, :14] = np.frombuffer(struct.pack("<HHHII", 1, 254, LONG, 1, 0), np.uint8)
    rows[:, 14:] = at.view(np.uint8).reshape(-1, 4)
    rows[-1, 14:] = 0
    return small(following=first) + rows.tobytes()


def nested_directories(size: int) -> bytes:
    """SubIFDs and EXIF directories nested thousands deep."""
    data = small(Entry(330, LONG, 1, 0), Entry(34665, LONG, 1, 0))
    first, step = len(data), 30
    parts = [
        struct.pack("<HHHIIHHIII", 2, 330, LONG, 1, first + step * n, 34665, LONG, 1, first + step * n, 0)
        for n in range(1, max(2, size // step))
    ]
    return small(Entry(330, LONG, 1, first), Entry(34665, LONG, 1, first)) + b"".join(parts)


def bigtiff_strips(size: int) -> bytes:
    rows = max(1, size // 16)
    table = [
        Entry(273, LONG8, rows, struct.pack("<Q", start(True)) * rows),
        long(278, 1),
        Entry(279, LONG8, rows, struct.pack("<Q", 1) * rows),
    ]
    return tiff([*image(1, rows), *table], b"\0", big=True)


def bigtiff_endless(size: int) -> bytes:
    """A directory that announces 2⁴⁰ fields, and a field of 2⁶⁰ values."""
    good = tiff([*image(64, 64), Entry(0x9999, RATIONAL, 2**60, 16)], bytes(size), big=True)
    at = int.from_bytes(good[8:16], "little")
    return good[:at] + struct.pack("<Q", 2**40) + good[at + 8 :]


def bomb(compression: str, mode: str = "L") -> Callable[[int], bytes]:
    """40 megapixels of one colour, padded to the size after the image."""

    @functools.cache
    def compressed() -> bytes:
        return encoded(plain(*LARGE, mode), "TIFF", compression=compression)

    return lambda size: compressed().ljust(size, b"\0")


def bit_bomb(compression: str) -> Callable[[int], bytes]:
    """40 megapixels of black and white."""
    return lambda size: encoded(Image.new("1", LARGE), "TIFF", compression=compression).ljust(size, b"\0")


def random_data(compression: int, **options: int) -> Callable[[int], bytes]:
    """40 megapixels of random data."""
    return lambda size: striped(noise(size), *LARGE, compression=compression, **options)


def empty_deflate_blocks(size: int) -> bytes:
    """Compressed data of empty blocks, five bytes each."""
    return striped(b"\x78\x9c" + fill(b"\0\0\0\xff\xff", size), 64, 64, compression=DEFLATE)


def lzw_clear_codes(size: int) -> bytes:
    """Only codes that clear the table: 256 in nine bits, so eight of them are nine bytes."""
    codes = int("100000000" * 8, 2).to_bytes(9, "big")
    return striped(fill(codes, size), *LARGE, compression=LZW)


def lzma_dictionary(size: int) -> bytes:
    """A stream that requests a dictionary of 1.5 GiB."""
    # Made with a small dictionary whose size is changed in the header: the encoder would need the memory too.
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]
    data = bytearray(lzma.compress(bytes(4096), lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters))
    length = (data[12] + 1) * 4
    at = data.index(b"\x21\x01", 12) + 2  # the filter's id and the length of its property
    data[at] = 37  # 3 · 2²⁹ (the xz format, section 5.3.1)
    data[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(bytes(data[12 : 12 + length - 4])))
    return striped(bytes(data).ljust(size, b"\0"), 64, 64, compression=LZMA)


def turned(size: int) -> bytes:
    """40 megapixels of RGB that must be rotated by 90°."""
    return _turned().ljust(size, b"\0")


@functools.cache
def _turned() -> bytes:
    return encoded(plain(*LARGE, "RGB"), "TIFF", compression="tiff_adobe_deflate", tiffinfo={274: 6})


BOMBS = {"adobe_deflate": "RGBA", "tiff_lzw": "RGB", "packbits": "L", "lzma": "L", "zstd": "RGB", "jpeg": "RGB"}
"""Modes of the images of one colour."""

RANDOM = {
    "lzw": LZW,
    "packbits": PACKBITS,
    "deflate": DEFLATE,
    "lzma": LZMA,
    "zstd": ZSTD,
    "old_jpeg": 6,
    "jpeg": 7,
    "thunderscan": 32809,
    "next": 32766,
    "lerc": 34887,
}
"""Compressions that random data claim to have."""

KINDS: dict[str, Callable[[int], bytes]] = {
    **by_name(
        giant_tile,
        giant_strip,
        strips,
        shared_strip,
        tiny_tiles,
        bits_per_sample,
        overlapping_values,
        looping_directory,
        chained_directories,
        nested_directories,
        bigtiff_strips,
        bigtiff_endless,
        empty_deflate_blocks,
        lzw_clear_codes,
        lzma_dictionary,
        turned,
    ),
    "giant_raw_tile": lambda size: giant_tile(size, 1),
    "deflated_strips": lambda size: strips(size, DEFLATE),
    "shared_lzw_strip": lambda size: shared_strip(size, LZW),
    "shared_packbits_strip": lambda size: shared_strip(size, PACKBITS),
    "shared_zstd_strip": lambda size: shared_strip(size, ZSTD),
    "rationals": values(RATIONAL, 8),
    "orientation_rationals": values(RATIONAL, 8, 274),
    "text": values(ASCII, 1),
    "bytes": values(BYTE, 1),
    "shorts": values(SHORT, 2),
    "doubles": values(DOUBLE, 8),
    "opaque": values(UNDEFINED, 1),
    "profile": values(UNDEFINED, 1, 34675),
    "metadata": values(BYTE, 1, 700),
    **{f"bomb_{name}": bomb(f"tiff_{name}" if name == "adobe_deflate" else name, mode) for name, mode in BOMBS.items()},
    **{f"bomb_{name}": bit_bomb(name) for name in ("group3", "group4", "tiff_ccitt")},
    **{f"random_{name}": random_data(number) for name, number in RANDOM.items()},
    "random_group3": random_data(3, bits=1),
    "random_group4": random_data(4, bits=1),
    "random_ccitt_rle": random_data(2, bits=1),
    "random_64_bit": random_data(DEFLATE, bits=64),
    "random_sgilog": random_data(34676, bits=16, photometric=32844),
}
