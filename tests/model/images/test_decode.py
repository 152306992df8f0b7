"""Every supported image becomes the right RGB array; everything else is one clear error."""

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
from sample_images import encoded, gradient

from moleflow.model.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.decode import FORMATS, image_format, open_rgb


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
    result = open_rgb(encoded(Image.fromarray(pixels), kind, **options))
    assert result.dtype == np.uint8
    assert np.array_equal(result, pixels)


def test_the_result_is_writable_and_contiguous() -> None:
    result = open_rgb(encoded(Image.fromarray(gradient()), "PNG"))
    assert result.flags.writeable
    assert result.flags.c_contiguous


def test_a_jpeg_is_decoded_to_similar_pixels() -> None:
    pixels = np.full((16, 24, 3), (200, 90, 30), np.uint8)
    assert np.abs(open_rgb(encoded(Image.fromarray(pixels), "JPEG", quality=95)).astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_detected_by_its_signature(kind: str) -> None:
    assert image_format(encoded(Image.fromarray(gradient()), kind)) == kind


def test_a_path_and_its_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(gradient()), "PNG")
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
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert np.array_equal(open_rgb(data), upright)


def test_a_rotated_phone_jpeg_is_turned_upright() -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    result = open_rgb(encoded(Image.fromarray(pixels), "JPEG", exif=exif))
    assert result.shape == (32, 16, 3)
    assert result[:12].mean() < 10
    assert result[20:].mean() > 245


def test_damaged_exif_is_ignored() -> None:
    pixels = gradient()
    data = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    assert np.array_equal(open_rgb(data), pixels)


def test_the_first_frame_of_an_animation_is_read() -> None:
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    for kind in ("GIF", "PNG"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        assert open_rgb(data)[0, 0].tolist() == [255, 0, 0]


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
    data = encoded(Image.fromarray(noise), kind)
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
    data = encoded(Image.fromarray(gradient(5, 7)), "PNG")
    assert open_rgb(data, max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(ImageTooLargeError):
        open_rgb(data, max_pixels=34)


def test_pillows_global_settings_are_not_changed() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, len(Image.OPEN)
    open_rgb(encoded(Image.fromarray(gradient()), "PNG"))
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
    data = encoded(Image.fromarray(pixels), "PNG")
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(result, pixels) for result in pool.map(open_rgb, [data] * 64))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_file_gives_an_image_or_an_image_error(kind: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(Image.fromarray(gradient(9, 11)), kind))
    for position, value in damage:
        data[int(position * len(data))] = value
    try:
        result = open_rgb(bytes(data), max_pixels=100_000)
    except ImageError:
        return
    assert result.dtype == np.uint8
    assert result.shape[2] == 3
