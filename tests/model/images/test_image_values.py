"""Every kind of file against the values in its format's specification, computed by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from image_files import bmp, gif, packed, png, png_chunk, tiff
from PIL import Image

from moleflow.model.errors import UnsupportedImageError
from moleflow.model.images.decode import has_deep_values, open_for_model, open_rgb

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types of a PNG."""

WHITE = [255, 255, 255]


def key(*values: int) -> bytes:
    return png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def grey(*values: float) -> list[list[int]]:
    return [[round(value)] * 3 for value in values]


def eight(*values: int) -> list[int]:
    """16-bit values in 8 bits, rounded."""
    return [round(value * 255 / 65535) for value in values]


PALETTE_CHUNK = png_chunk(b"PLTE", bytes([250, 0, 0, 0, 240, 0, 0, 0, 230, 7, 8, 9]))
TWELVE = packed(np.array([0, 1000, 2048, 4095]), 12)

PNGS: dict[str, tuple[bytes, list[list[int]]]] = {
    "grey 1": (png([[0, 1, 1]], 1, GREY), grey(0, 255, 255)),
    "grey 2": (png([[0, 1, 2, 3]], 2, GREY), grey(0, 85, 170, 255)),
    "grey 4": (png([[0, 1, 9, 15]], 4, GREY), grey(0, 17, 153, 255)),
    "grey 8": (png([[0, 1, 254]], 8, GREY), grey(0, 1, 254)),
    "grey 16": (png([[0, 300, 40_000, 65_535]], 16, GREY), grey(*eight(0, 300, 40_000, 65_535))),
    "grey 1 with key": (png([[0, 1, 0]], 1, GREY, key(0)), grey(255, 255, 255)),
    "grey 1 with key white": (png([[0, 1, 0]], 1, GREY, key(1)), grey(0, 255, 0)),
    "grey 2 with key": (png([[0, 1, 2]], 2, GREY, key(1)), grey(0, 255, 170)),
    "grey 4 with key": (png([[1, 9, 10]], 4, GREY, key(9)), grey(17, 255, 170)),
    "grey 4 with key that is another grey in 8 bits": (png([[1, 0, 1]], 4, GREY, key(1)), grey(255, 0, 255)),
    "grey 8 with key": (png([[7, 8]], 8, GREY, key(7)), grey(255, 8)),
    "grey 8 with high bits in the key": (png([[7, 8]], 8, GREY, key(0x0107)), grey(255, 8)),
    "grey 16 with key": (png([[300, 301]], 16, GREY, key(300)), grey(255, *eight(301))),
    "RGB 8": (png([[[1, 2, 3], [4, 5, 6]]], 8, RGB), [[1, 2, 3], [4, 5, 6]]),
    "RGB 8 with key": (png([[[1, 2, 3], [4, 5, 6]]], 8, RGB, key(1, 2, 3)), [WHITE, [4, 5, 6]]),
    "RGB 16": (
        png([[[0, 300, 65_535], [257, 40_000, 128]]], 16, RGB),
        [eight(0, 300, 65_535), eight(257, 40_000, 128)],
    ),
    "RGB 16 with key": (
        png([[[300, 301, 302], [300, 301, 303]]], 16, RGB, key(300, 301, 302)),
        [WHITE, eight(300, 301, 303)],
    ),
    "palette 1": (png([[0, 1]], 1, PALETTE, PALETTE_CHUNK), [[250, 0, 0], [0, 240, 0]]),
    "palette 2": (png([[3, 2]], 2, PALETTE, PALETTE_CHUNK), [[7, 8, 9], [0, 0, 230]]),
    "palette 4": (png([[3, 1]], 4, PALETTE, PALETTE_CHUNK), [[7, 8, 9], [0, 240, 0]]),
    "palette 8": (png([[2, 0]], 8, PALETTE, PALETTE_CHUNK), [[0, 0, 230], [250, 0, 0]]),
    "palette with alpha": (
        png([[0, 1, 3]], 4, PALETTE, PALETTE_CHUNK, png_chunk(b"tRNS", bytes([0, 51]))),
        [WHITE, [204, 252, 204], [7, 8, 9]],
    ),
    "grey and alpha 8": (png([[[40, 255], [40, 0], [0, 51]]], 8, GREY_ALPHA), grey(40, 255, 204)),
    "grey and alpha 16": (
        png([[[4000, 65_535], [4000, 0], [0, 13_107], [0x1234, 0xFFFF]]], 16, GREY_ALPHA),
        grey(*eight(4000), 255, 204, *eight(0x1234)),
    ),
    "RGBA 8": (png([[[9, 8, 7, 255], [9, 8, 7, 0], [0, 0, 0, 51]]], 8, RGBA), [[9, 8, 7], WHITE, [204, 204, 204]]),
    "RGBA 16": (
        png([[[300, 301, 40_000, 65_535], [1, 2, 3, 0], [0, 0, 0, 13_107]]], 16, RGBA),
        [eight(300, 301, 40_000), WHITE, [204, 204, 204]],
    ),
}


def u2(order: str, *values: int) -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


TIFFS: dict[str, tuple[bytes, list[list[int]]]] = {
    "black is 0, 1 bit": (tiff(3, 1, b"\xa0", [1], t262=1), grey(255, 0, 255)),
    "white is 0, 1 bit": (tiff(3, 1, b"\xa0", [1], t262=0), grey(0, 255, 0)),
    "white is 0, 4 bits": (tiff(2, 1, b"\x1f", [4], t262=0), grey(238, 0)),
    "white is 0, 8 bits": (tiff(2, 1, b"\x01\xff", [8], t262=0), grey(254, 0)),
    "white is 0, 16 bits": (tiff(2, 1, u2("<", 1000, 65_535), [16], t262=0), grey(*eight(64_535, 0))),
    "12 bits": (tiff(4, 1, TWELVE, [12], t262=1), grey(0, 1000 * 255 / 4095, 2048 * 255 / 4095, 255)),
    "grey 16": (tiff(2, 1, u2("<", 300, 40_000), [16], t262=1), grey(*eight(300, 40_000))),
    "grey 16 of the other order": (
        tiff(2, 1, u2(">", 300, 40_000), [16], order=">", t262=1),
        grey(*eight(300, 40_000)),
    ),
    "RGB 8": (tiff(1, 1, b"\1\2\3", [8, 8, 8], t262=2), [[1, 2, 3]]),
    "RGB 8 in planes": (
        tiff(2, 1, b"\1\4\2\5\3\6", [8, 8, 8], t262=2, t284=2, t273=[8, 10, 12], t279=[2, 2, 2]),
        [[1, 2, 3], [4, 5, 6]],
    ),
    "RGB 16": (tiff(1, 1, u2("<", 300, 301, 40_000), [16] * 3, t262=2), [eight(300, 301, 40_000)]),
    "RGB 16 of the other order": (
        tiff(1, 1, u2(">", 300, 301, 40_000), [16] * 3, order=">", t262=2),
        [eight(300, 301, 40_000)],
    ),
    "RGB 16 and a channel without meaning": (
        tiff(1, 1, u2("<", 300, 301, 40_000, 7), [16] * 4, t262=2, t338=0),
        [eight(300, 301, 40_000)],
    ),
    "RGBA 16": (tiff(1, 1, u2("<", 0, 0, 65_535, 13_107), [16] * 4, t262=2, t338=2), [[204, 204, 255]]),
    "RGBA 16, premultiplied": (
        tiff(1, 1, u2("<", 0, 1000, 13_107, 13_107), [16] * 4, t262=2, t338=1),
        [[204, *eight(52_428 + 1000), 255]],
    ),
    "RGBA 8, premultiplied": (tiff(1, 1, bytes([0, 51, 51, 51]), [8] * 4, t262=2, t338=1), [[204, 255, 255]]),
}

OTHERS: dict[str, tuple[bytes, list[list[int]]]] = {
    "BMP of 5, 5 and 5 bits": (
        bmp(2, 1, 16, [u2("<", 31 << 10 | 5 << 5, 18)]),
        [[255, round(5 * 255 / 31), 0], [0, 0, round(18 * 255 / 31)]],
    ),
    "BMP of 5, 6 and 5 bits": (
        bmp(2, 1, 16, [u2("<", 31 << 11 | 9 << 5, 63 << 5)], [0xF800, 0x7E0, 0x1F, 0]),
        [[255, round(9 * 255 / 63), 0], [0, 255, 0]],
    ),
    "BMP of 32 bits": (bmp(2, 1, 32, [bytes([3, 2, 1, 0, 6, 5, 4, 0])]), [[1, 2, 3], [4, 5, 6]]),
    "BMP with alpha": (
        bmp(3, 1, 32, [bytes([3, 2, 1, 255, 6, 5, 4, 0, 0, 0, 0, 51])], [0xFF0000, 0xFF00, 0xFF, 0xFF000000]),
        [[1, 2, 3], WHITE, [204, 204, 204]],
    ),
    "GIF": (gif((2, 1), (0, 0, 2, 1), [1, 2], bytes([*WHITE, 9, 0, 0, 0, 8, 0, 0, 0, 7])), [[9, 0, 0], [0, 8, 0]]),
    "GIF with a transparent colour": (
        gif((2, 1), (0, 0, 2, 1), [1, 2], bytes([0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 7]), transparent=1),
        [WHITE, [0, 8, 0]],
    ),
    "GIF whose frame is smaller than the canvas": (
        gif((4, 1), (1, 0, 2, 1), [1, 2], bytes([5, 5, 5, 9, 0, 0, 0, 8, 0, 0, 0, 7])),
        [WHITE, [9, 0, 0], [0, 8, 0], WHITE],
    ),
    "GIF whose frame is smaller than the canvas, with a transparent colour": (
        gif((4, 1), (1, 0, 2, 1), [1, 2], bytes([5, 5, 5, 9, 0, 0, 0, 8, 0, 0, 0, 7]), transparent=2),
        [WHITE, [9, 0, 0], WHITE, WHITE],
    ),
}


@pytest.mark.parametrize("name", PNGS)
def test_a_png_has_the_values_of_its_specification(name: str) -> None:
    data, expected = PNGS[name]
    assert open_rgb(data).tolist() == [expected]


@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_has_the_values_of_its_specification(name: str) -> None:
    data, expected = TIFFS[name]
    assert open_rgb(data).tolist() == [expected]


@pytest.mark.parametrize("name", OTHERS)
def test_a_bmp_or_gif_has_the_values_of_its_specification(name: str) -> None:
    data, expected = OTHERS[name]
    assert open_rgb(data).tolist() == [expected]


@pytest.mark.parametrize(
    ("bits", "colour", "channels"), [(8, RGB, 3), (16, GREY, 1), (16, RGB, 3), (16, GREY_ALPHA, 2)]
)
def test_an_interlaced_png_reads_like_a_plain_one(bits: int, colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (11, 13, channels))
    assert np.array_equal(open_rgb(png(values, bits, colour, interlaced=True)), open_rgb(png(values, bits, colour)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_compressed_16_bit_grey_tiff_reads_like_a_plain_one(compression: str, mode: str) -> None:
    values = np.array([[0, 300, 40_000, 65_535]], "<u2" if mode == "I;16" else ">u2")
    buffer = io.BytesIO()
    Image.frombytes(mode, (4, 1), values.tobytes()).save(buffer, "TIFF", compression=compression)
    assert open_rgb(buffer.getvalue()).tolist() == [grey(*eight(0, 300, 40_000, 65_535))]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_compressed_16_bit_rgb_tiff_reads_like_a_plain_one(order: str) -> None:
    data = zlib.compress(u2(order, 300, 301, 40_000, 0, 128, 65_535))
    pixels = open_rgb(tiff(2, 1, data, [16] * 3, order=order, t262=2, t259=8))
    assert pixels.tolist() == [[eight(300, 301, 40_000), eight(0, 128, 65_535)]]


REFUSED = {
    "signed 8-bit TIFF": tiff(2, 1, b"\x01\xff", [8], t262=1, t339=2),
    "signed 16-bit TIFF": tiff(2, 1, u2("<", 1, 65_535), [16], t262=1, t339=2),
    "unsigned 32-bit TIFF": tiff(1, 1, b"\1\2\3\4", [32], t262=1),
    "signed 32-bit TIFF": tiff(1, 1, b"\1\2\3\4", [32], t262=1, t339=2),
    "floating-point TIFF": tiff(1, 1, struct.pack("<f", 0.5), [32], t262=1, t339=3),
    "16-bit floating-point TIFF": tiff(1, 1, b"\0\x38", [16], t262=1, t339=3),
    "white is 0, 12 bits": tiff(4, 1, TWELVE, [12], t262=0),
    "12 bits of the other order": tiff(4, 1, TWELVE, [12], order=">", t262=1),
    "16-bit RGB in planes": tiff(
        1, 1, u2("<", 300, 301, 302), [16] * 3, t262=2, t284=2, t273=[8, 10, 12], t279=[2, 2, 2]
    ),
    "16-bit CMYK": tiff(1, 1, u2("<", 1, 2, 3, 4), [16] * 4, t262=5),
    "CIELAB": tiff(1, 1, b"\1\2\3", [8] * 3, t262=8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_would_be_misread_are_refused_with_advice(name: str) -> None:
    for read in (open_rgb, lambda data: open_for_model(data, 32)):
        with pytest.raises(UnsupportedImageError, match="save it"):
            read(REFUSED[name])


def jpeg(mode: str, colour: tuple[int, ...], **options: Any) -> bytearray:
    buffer = io.BytesIO()
    Image.new(mode, (16, 16), colour).save(buffer, "JPEG", quality=100, subsampling=0, **options)
    return bytearray(buffer.getvalue())


def test_an_inverted_cmyk_jpeg_by_adobe_becomes_rgb() -> None:
    # Pillow writes ink amounts inverted and says so in Adobe's segment.
    pixels = open_rgb(bytes(jpeg("CMYK", (255, 102, 0, 51))))
    assert np.abs(pixels[0, 0].astype(int) - [0, 122, 204]).max() <= 2


def test_a_ycck_jpeg_becomes_rgb() -> None:
    data = jpeg("CMYK", (90, 140, 200, 30))
    transform = data.index(b"Adobe") + 11
    data[transform] = 2  # the stored values are now Y, Cb, Cr, and inverted black
    y, cb, cr, k = (255 - value for value in (90, 140, 200, 30))
    rgb = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
    # That gives 255 minus the stored values, which are inverted: the ink itself.
    expected = (255 - np.clip(rgb, 0, 255)) * k / 255
    assert np.abs(open_rgb(bytes(data))[0, 0] - expected).max() <= 3


def test_an_rgb_jpeg_is_not_converted() -> None:
    data = jpeg("RGB", (200, 90, 30), keep_rgb=True)
    assert np.abs(open_rgb(bytes(data))[0, 0].astype(int) - [200, 90, 30]).max() <= 1


def test_a_grey_webp_with_alpha_is_composited_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(40, 255), (40, 0)])
    buffer = io.BytesIO()
    image.save(buffer, "WebP", lossless=True)
    assert open_rgb(buffer.getvalue()).tolist() == [grey(40, 255)]


def test_exif_orientation_applies_to_16_bit_pngs() -> None:
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)  # rotate clockwise
    data = png([[0, 20_000, 40_000]], 16, GREY, png_chunk(b"eXIf", exif))
    assert open_rgb(data)[:, 0, 0].tolist() == eight(0, 20_000, 40_000)
    found = open_for_model(data, 3)
    assert (found.width, found.height) == (1, 3)
    assert found.pixels[:, 0, 0].tolist() == [0, 20_000, 40_000]


def test_the_width_of_a_rotated_tiff_is_that_of_the_upright_image() -> None:
    for data in (
        tiff(3, 1, b"\1\2\3", [8], t262=1, t274=6),
        tiff(3, 1, u2("<", 1, 2, 3), [16], t262=1, t274=6),
        tiff(3, 1, u2("<", *range(9)), [16] * 3, t262=2, t274=6),
    ):
        found = open_for_model(data, 8)
        assert (found.width, found.height) == (1, 3)
        assert open_rgb(data).shape == (3, 1, 3)


@pytest.mark.parametrize(("bits", "expected"), [(8, False), (16, True)])
@pytest.mark.parametrize(("colour", "channels"), [(GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGBA, 4)])
def test_the_bit_depth_is_read_from_the_header(bits: int, colour: int, channels: int, expected: bool) -> None:
    assert has_deep_values(png(np.zeros((1, 1, channels)), bits, colour)) is expected


@pytest.mark.parametrize(("colour", "channels"), [(GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGBA, 4)])
def test_16_bit_values_reach_the_model_unrounded(colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (32, 32, channels))
    if channels in (2, 4):
        values[..., -1] = 65_535
    pixels = open_for_model(png(values, 16, colour), 32).pixels
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, np.broadcast_to(values[..., : 1 if channels < 3 else 3], (32, 32, 3)))


def test_resizing_in_strips_equals_resizing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (90, 70))
    data = png(values, 16, GREY)
    whole = Image.fromarray(values.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR)
    monkeypatch.setattr("moleflow.model.images.resizing.STRIP_PIXELS", 700)
    pixels = open_for_model(data, 32).pixels
    assert np.abs(pixels[..., 0] - np.asarray(whole)).max() <= 0.51
