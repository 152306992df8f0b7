"""Limits for images, and decoding at the model's size."""

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, png_of_declared_size, sample_image

from moleflow.model.errors import ImageTooLargeError
from moleflow.model.images.decode import MAX_SIDE, open_for_model, open_rgb
from moleflow.model.images.preprocessing import Preprocessing

MODEL = Preprocessing(image_size=64, mean=(0, 0, 0), std=(1, 1, 1))


def test_an_image_is_resized_to_the_size_of_the_checkpoint() -> None:
    rgb = sample_image(90, 60)
    decoded = open_for_model(encoded(rgb), MODEL.image_size, max_pixels=10_000)
    assert np.array_equal(decoded.pixels, MODEL.resize(rgb))


def test_the_size_is_that_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = open_for_model(
        encoded(sample_image(90, 60), "JPEG", exif=exif.tobytes()), MODEL.image_size, max_pixels=10_000
    )
    assert (decoded.width, decoded.height) == (60, 90)


def test_a_large_jpeg_keeps_its_coordinates() -> None:
    rgb = np.repeat(np.repeat(sample_image(90, 60), 16, axis=0), 16, axis=1)
    decoded = open_for_model(encoded(rgb, "JPEG", quality=95), MODEL.image_size, max_pixels=10**7)
    assert (decoded.height, decoded.width) == rgb.shape[:2]
    whole = MODEL.resize(open_rgb(encoded(rgb, "JPEG", quality=95)))
    assert np.abs(decoded.pixels.astype(int) - whole).max() <= 1


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    with pytest.raises(ImageTooLargeError, match=r"30000 × 30000"):
        open_for_model(png_of_declared_size(30_000, 30_000), MODEL.image_size, max_pixels=40_000_000)


def test_an_image_at_the_pixel_limit_is_accepted() -> None:
    assert open_for_model(encoded(sample_image(90, 60)), MODEL.image_size, max_pixels=90 * 60).width == 90


def test_an_image_one_pixel_over_the_limit_is_rejected() -> None:
    with pytest.raises(ImageTooLargeError, match="at most 5,399"):
        open_for_model(encoded(sample_image(90, 60)), MODEL.image_size, max_pixels=90 * 60 - 1)


def test_a_side_that_is_too_long_is_rejected_before_decoding() -> None:
    with pytest.raises(ImageTooLargeError, match=re.escape(f"{MAX_SIDE:,}")):
        open_for_model(png_of_declared_size(MAX_SIDE + 1, 1), MODEL.image_size, max_pixels=MAX_SIDE * 2)


def test_a_small_file_of_many_pixels_is_rejected_without_decoding_it() -> None:
    side = 2_000
    body = zlib.compress(bytes(side * 3 + 1) * side)
    assert len(body) < 20_000  # of 12 MB
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    with pytest.raises(ImageTooLargeError):
        open_for_model(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), MODEL.image_size, max_pixels=1_000_000)
