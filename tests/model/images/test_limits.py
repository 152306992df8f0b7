"""Files that are refused by their structure, before a decoder spends time or memory on them."""

import contextlib
import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from moleflow.model.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.decode import image_format, open_rgb
from moleflow.model.images.limits import MAX_SCANNED_PIXELS, MAX_SCANS, check_structure

MEGABYTE = 2**20
BOUND_SECONDS = 5
"""Far more than a linear walk over a few megabytes takes, and far less than a quadratic one."""


def encoded(kind: str, **options: Any) -> bytes:
    """A gradient of 90 × 60 pixels as a file."""
    rgb = np.zeros((60, 90, 3), np.uint8)
    rgb[..., 1] = np.linspace(60, 120, 90).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


def progressive_jpeg(repeats: int) -> bytes:
    """A progressive JPEG whose last scan is repeated ``repeats`` times."""
    data = encoded("JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * repeats + data[-2:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    """A valid PNG with more chunks before its pixels."""
    data = encoded("PNG")
    pixels = data.index(b"IDAT") - 4
    return data[:pixels] + b"".join(chunks) + data[pixels:]


def tiff(*tags: tuple[int, int, int, int | bytes]) -> bytes:
    """A little-endian TIFF of 64 × 64 grey pixels with further tags: number, type, count and value."""
    plain = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    if not any(tag[0] == 322 for tag in tags):
        plain += [(273, 4, 1, 8), (278, 4, 1, 64), (279, 4, 1, 4096)]
    entries, values = b"", b"\x80" * 4096
    all_tags = sorted([*plain, *tags])
    for tag, kind, count, value in all_tags:
        number = value if isinstance(value, int) else 8 + len(values)
        values += b"" if isinstance(value, int) else value
        entries += struct.pack("<HHII", tag, kind, count, number)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(all_tags)) + entries + bytes(4)
    )


def run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(body), 0, 0, 54 + 1024) + header + bytes(1024) + body


EXIF_OF_RATIONALS = (
    b"MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05" + struct.pack(">II", 500_000, 26) + bytes(4) + bytes(4_000_000)
)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    """A valid JPEG with more segments before all others."""
    data = encoded("JPEG")
    return data[:2] + b"".join(segments) + data[2:]


HOSTILE = {
    "JPEG of fill bytes": b"\xff\xd8" + b"\xff" * MEGABYTE + b"\0",
    "JPEG of stuffed zeros before a scan": b"\xff\xd8\xff\xfe\0\x02" + b"\xff\0" * MEGABYTE,
    "JPEG of restart markers before a scan": b"\xff\xd8\xff\xfe\0\x02" + b"\xff\xd0" * MEGABYTE,
    "JPEG of ends": b"\xff\xd8" + b"\xff\xd9" * MEGABYTE,
    "JPEG of junk after its end": b"\xff\xd8\xff\xd9" + b"a" * MEGABYTE,
    "JPEG of comments": b"\xff\xd8" + b"\xff\xfe\0\x02" * MEGABYTE,
    "JPEG with EXIF of rationals in many segments": jpeg_with(
        *(segment(0xE1, b"Exif\0\0" + EXIF_OF_RATIONALS[at : at + 65_000]) for at in range(0, 4_000_000, 65_000))
    ),
    "JPEG with EXIF of very many segments": jpeg_with(*[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 100),
    "JPEG with very many image resources": jpeg_with(
        *[segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5_000)] * 10
    ),
    "JPEG of many scans": progressive_jpeg(MAX_SCANS),
    "PNG of text chunks": png_with(chunk(b"tEXt", b"a\0b") * 50_000),
    "PNG of empty chunks of pixels": png_with(chunk(b"IDAT", b"") * 50_000),
    "PNG with EXIF of rationals": png_with(chunk(b"eXIf", EXIF_OF_RATIONALS)),
    "GIF of comments": b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * MEGABYTE,
    "GIF of one endless comment": b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1a" * MEGABYTE,
    "GIF of junk": b"GIF89a\1\0\1\0\0\0\0" + b"a" * MEGABYTE,
    "TIFF with a tag of rationals": tiff((282, 5, 500_000, b"\1\0\0\0" * 1_000_000)),
    "TIFF of overlapping tags": tiff(*((tag, 1, 4 * MEGABYTE, 8) for tag in range(40_000, 40_020)))
    + bytes(4 * MEGABYTE),
    "TIFF of very many tags": tiff(*((tag, 3, 1, 1) for tag in range(1_000, 9_000))),
    "TIFF with a giant tile": tiff((322, 4, 1, 46_336), (323, 4, 1, 46_336), (324, 4, 1, 8), (325, 4, 1, 4096)),
    "BMP of many runs": run_length_bmp(2_000, 2_000, b"\1\1" * MEGABYTE + b"\0\0"),
    "BMP of empty rows": run_length_bmp(40_000, 1_000, b"\1\1\0\0" * 1_000),
    "WebP of chunks": b"RIFF" + struct.pack("<I", 8 * MEGABYTE) + b"WEBP" + b"XXXX\0\0\0\0" * MEGABYTE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_costly_to_decode_is_refused_at_once(name: str) -> None:
    data = HOSTILE[name]
    started = time.process_time()
    with pytest.raises((UnsupportedImageError, ImageTooLargeError), match=r"The image is .*; save it again"):
        check_structure(data, image_format(data) or "JPEG")
    assert time.process_time() - started < BOUND_SECONDS


@pytest.mark.parametrize("name", HOSTILE)
def test_every_decoding_function_refuses_it(name: str) -> None:
    with pytest.raises(ImageError):
        open_rgb(HOSTILE[name])


@pytest.mark.parametrize("tail", [b"\xff" * 2, b"\xff\0", b"\xff\xd0"])
def test_the_worst_scan_data_is_checked_in_linear_time(tail: bytes) -> None:
    data = progressive_jpeg(repeats=0)[:-2] + tail * (2 * MEGABYTE)
    started = time.process_time()
    check_structure(data, "JPEG")
    assert time.process_time() - started < BOUND_SECONDS


def test_a_larger_progressive_jpeg_may_have_fewer_scans() -> None:
    data = bytearray(progressive_jpeg(repeats=20))
    frame = data.index(b"\xff\xc2")
    check_structure(bytes(data), "JPEG")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 10_000, MAX_SCANNED_PIXELS // 200_000)
    with pytest.raises(UnsupportedImageError, match="50,000,000 pixels with 21 or more scans"):
        check_structure(bytes(data), "JPEG")


@pytest.mark.filterwarnings("ignore:Tag data larger")  # the test run turns Pillow's warnings into errors
@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG"),
        progressive_jpeg(repeats=0),
        encoded("JPEG", comment=b"\xff\xda" * (MAX_SCANS + 1)),
        encoded("JPEG") + b"\xff\xda" * (MAX_SCANS + 1),  # phones append a video to a "motion photo"
        encoded("JPEG", icc_profile=bytes(4 * MEGABYTE)),
        png_with(chunk(b"tEXt", b"a\0b") * 500),
        encoded("GIF", comment=b"a" * 10_000),
        encoded("TIFF", compression="tiff_lzw"),
        encoded("TIFF", big_tiff=True),
        encoded("BMP"),
        encoded("WebP"),
        run_length_bmp(90, 60, b"\x5a\x80\0\0" * 60 + b"\0\1"),
        tiff((305, 2, 1_000_000, bytes(1_000_000))),
        pytest.param(
            tiff((282, 5, 4_000_000_000, 0)),  # a damaged count, which the decoder ignores
            marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 refuses it"),
        ),
        tiff((322, 4, 1, 1024), (323, 4, 1, 64), (324, 4, 1, 8), (325, 4, 1, 65_536)) + bytes(70_000),
    ],
    ids=lambda data: f"{image_format(data)} of {len(data)} bytes",
)
def test_an_unusual_but_harmless_file_is_decoded(data: bytes) -> None:
    assert open_rgb(data).shape in {(60, 90, 3), (64, 64, 3)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_truncated_anywhere_raises_no_other_error(name: str) -> None:
    data = HOSTILE[name]
    for length in (*range(2, 64), len(data) // 2):
        with contextlib.suppress(ImageError):
            check_structure(data[:length], image_format(data) or "JPEG")
