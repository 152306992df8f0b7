"""Every supported image becomes the right RGB array; everything else is one clear error."""

import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from moleflow.model.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.decode import FORMATS, MIN_OVERSAMPLING, image_format, open_for_model, open_image, open_rgb
from moleflow.model.images.preprocessing import Preprocessing

RESIZE = Preprocessing(image_size=32, mean=(0, 0, 0), std=(1, 1, 1)).resize


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 5, width: int = 7) -> np.ndarray:
    """An RGB image in which all pixels differ."""
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG with a header and the start of a pixel chunk, and nothing else."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\xff\xffIDAT"
    )


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WebP", {"lossless": True})])
def test_a_lossless_rgb_image_is_decoded_exactly(kind: str, options: dict[str, object]) -> None:
    pixels = gradient()
    result = open_rgb(encode(Image.fromarray(pixels), kind, **options))
    assert result.dtype == np.uint8
    assert np.array_equal(result, pixels)


def test_the_result_is_writable_and_contiguous() -> None:
    result = open_rgb(encode(Image.fromarray(gradient()), "PNG"))
    assert result.flags.writeable
    assert result.flags.c_contiguous


def test_a_jpeg_is_decoded_to_similar_pixels() -> None:
    pixels = np.full((16, 24, 3), (200, 90, 30), np.uint8)
    assert np.abs(open_rgb(encode(Image.fromarray(pixels), "JPEG", quality=95)).astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_detected_by_its_signature(kind: str) -> None:
    assert image_format(encode(Image.fromarray(gradient()), kind)) == kind


def test_a_path_and_its_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    data = encode(Image.fromarray(gradient()), "PNG")
    path = tmp_path / "named_wrongly.jpg"
    path.write_bytes(data)
    assert np.array_equal(open_rgb(path), open_rgb(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WebP"])
def test_every_exif_orientation_is_turned_upright(orientation: int, kind: str) -> None:
    upright = gradient()
    # A camera stores the inverse of the transposition that the tag asks for (EXIF 2.32, 4.6.4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WebP" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert np.array_equal(open_rgb(data), upright)


def test_a_rotated_phone_jpeg_is_turned_upright() -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    result = open_rgb(encode(Image.fromarray(pixels), "JPEG", exif=exif))
    assert result.shape == (32, 16, 3)
    assert result[:12].mean() < 10
    assert result[20:].mean() > 245


def test_damaged_exif_is_ignored() -> None:
    pixels = gradient()
    data = encode(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    assert np.array_equal(open_rgb(data), pixels)


def test_grey_becomes_three_equal_channels() -> None:
    grey = gradient()[..., 0]
    assert np.array_equal(open_rgb(encode(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))


def test_bilevel_becomes_0_and_255() -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    result = open_rgb(encode(Image.fromarray(bits), "PNG"))
    assert np.array_equal(result[..., 0], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_palette_image_gets_the_colours_of_its_palette(kind: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert open_rgb(encode(image, kind)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_a_transparent_palette_entry_is_composited_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    assert open_rgb(encode(image, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_per_entry_palette_alpha_is_composited_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putdata([0, 1])
    assert open_rgb(encode(image, "PNG", transparency=b"\xff\x80")).tolist() == [[[255, 0, 0], [127, 127, 127]]]


def test_a_colour_key_is_composited_on_white() -> None:
    pixels = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    data = encode(Image.fromarray(pixels), "PNG", transparency=(10, 20, 30))
    assert open_rgb(data).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_alpha_is_composited_on_white() -> None:
    pixels = np.array([[[100, 0, 0, 0], [100, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    assert open_rgb(encode(Image.fromarray(pixels), "PNG")).tolist() == [
        [[255, 255, 255], [100, 0, 0], [204, 204, 204]]
    ]


def test_grey_with_alpha_is_composited_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(40, 255), (40, 0)])
    assert open_rgb(encode(image, "PNG"))[..., 0].tolist() == [[40, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_over_its_full_range(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    assert open_rgb(encode(Image.fromarray(values), kind))[..., 0].tolist() == [[0, 0, 1, 1, 128, 255]]


def test_16_bit_grey_reads_the_same_in_both_byte_orders() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert open_rgb(encode(image, "TIFF"))[..., 0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = open_rgb(encode(image, kind)).reshape(-1, 3).mean(0)
    assert np.abs(result - (255, 0, 0)).max() <= 3


def test_the_first_frame_of_an_animation_is_read() -> None:
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    for kind in ("GIF", "PNG"):
        data = encode(first, kind, save_all=True, append_images=[second])
        assert open_rgb(data)[0, 0].tolist() == [255, 0, 0]


def test_floating_point_values_are_refused() -> None:
    data = encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    with pytest.raises(UnsupportedImageError, match="The image has signed or floating-point values"):
        open_rgb(data)


def test_an_unsupported_colour_space_is_refused() -> None:
    data = encode(Image.new("LAB", (4, 4)), "TIFF")
    with pytest.raises(UnsupportedImageError, match="mode LAB"):
        open_rgb(data)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="is empty"):
        open_rgb(b"")


@pytest.mark.parametrize("data", [b"hello, world", b"%PDF-1.7", b"<svg/>", b"\0\0\0\x1cftypheic", b"P5 2 2 255 abcd"])
def test_bytes_of_an_unknown_format_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match="save it as PNG or JPEG"):
        open_rgb(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_image_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(UnsupportedImageError, match="cannot be decoded"):
        open_rgb(data[: len(data) // 2])


def test_the_message_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"nothing")
    with pytest.raises(UnsupportedImageError, match=r"broken\.png is not a PNG"):
        open_rgb(path)


def test_a_missing_file_is_an_image_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.png cannot be read: No such file"):
        open_rgb(tmp_path / "absent.png")


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    # The file ends after its header, so only a check before decoding can raise this.
    with pytest.raises(ImageTooLargeError, match=r"30000 × 20000 = 600,000,000 pixels; at most 1,000 are"):
        open_rgb(png_header(30_000, 20_000), max_pixels=1_000)


def test_an_image_exactly_at_the_limit_is_read() -> None:
    data = encode(Image.fromarray(gradient(5, 7)), "PNG")
    assert open_rgb(data, max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(ImageTooLargeError):
        open_rgb(data, max_pixels=34)


def test_open_image_keeps_palette_indices() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0] * 3)
    image.putdata([0, 1, 2])
    assert np.asarray(open_image(encode(image, "PNG"))).tolist() == [[0, 1, 2]]


def test_pillows_global_settings_are_not_changed() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, len(Image.OPEN)
    open_rgb(encode(Image.fromarray(gradient()), "PNG"))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, len(Image.OPEN)) == before


def test_damaged_metadata_gives_no_warning() -> None:
    outcome = run(
        "import io; from PIL import Image; from moleflow.model.images.decode import open_rgb; buffer = io.BytesIO();"
        "Image.new('RGB', (4, 4)).save(buffer, 'PNG', exif=b'Exif\\0\\0II*\\0\\x08\\0\\0\\0' + b'\\xff' * 20);"
        "print(open_rgb(buffer.getvalue()).shape)"
    )
    assert (outcome.stdout, outcome.stderr) == ("(4, 4, 3)\n", "")


def test_threads_decode_to_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "PNG")
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(result, pixels) for result in pool.map(open_rgb, [data] * 64))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_file_gives_an_image_or_an_image_error(kind: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(encode(Image.fromarray(gradient(9, 11)), kind))
    for position, value in damage:
        data[int(position * len(data))] = value
    try:
        result = open_rgb(bytes(data), max_pixels=100_000)
    except ImageError:
        return
    assert result.dtype == np.uint8
    assert result.shape[2] == 3


def detailed(height: int, width: int) -> np.ndarray:
    """An image with shapes of every size, and noise."""
    rng = np.random.default_rng(0)
    layers = [rng.normal(0, 20, (-(-height // step), -(-width // step), 3)) for step in (1, 3, 16, 60)]
    spread = [np.kron(layer, np.ones((step, step, 1))) for layer, step in zip(layers, (1, 3, 16, 60), strict=True)]
    return np.clip(128 + sum(layer[:height, :width] for layer in spread), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_decoded_at_reduced_scale_keeps_its_size_and_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(detailed(512, 768)), "JPEG", quality=95, exif=exif.tobytes())
    full, reduced = open_rgb(data), open_for_model(data, 32)
    assert (reduced.height, reduced.width) == full.shape[:2]
    difference = np.abs(reduced.pixels.astype(int) - RESIZE(full))
    assert 0 < difference.max() <= 1  # 0 would mean decoding at full scale


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_large_jpegs_in_other_colour_spaces_are_reduced_too(mode: str) -> None:
    data = encode(Image.fromarray(detailed(256, 256)).convert(mode), "JPEG", quality=95)
    difference = np.abs(open_for_model(data, 32).pixels.astype(int) - RESIZE(open_rgb(data)))
    assert 0 < difference.max() <= 2


@pytest.mark.parametrize(
    ("height", "width"), [(255, 512), (254, 512), (256, 257), (2 * 32 * MIN_OVERSAMPLING - 2, 1024)]
)
def test_a_jpeg_that_is_too_small_or_not_divisible_is_decoded_at_full_scale(height: int, width: int) -> None:
    data = encode(Image.fromarray(detailed(height, width)), "JPEG")
    small = open_for_model(data, 32)
    assert np.array_equal(small.pixels, RESIZE(open_rgb(data)))
    assert (small.height, small.width) == (height, width)


@pytest.mark.parametrize("kind", ["PNG", "WebP", "BMP", "TIFF"])
def test_only_jpegs_are_reduced(kind: str) -> None:
    data = encode(Image.fromarray(detailed(256, 256)), kind)
    assert np.array_equal(open_for_model(data, 32).pixels, RESIZE(open_rgb(data)))


def test_the_pixel_limit_applies_to_the_full_size_not_the_reduced_one() -> None:
    data = encode(Image.fromarray(detailed(256, 256)), "JPEG")
    with pytest.raises(ImageTooLargeError, match="65,536 pixels"):
        open_for_model(data, 32, max_pixels=65_535)


def test_a_large_truncated_jpeg_is_refused() -> None:
    data = encode(Image.fromarray(detailed(256, 256)), "JPEG")
    with pytest.raises(UnsupportedImageError):
        open_for_model(data[: len(data) // 2], 32)
