"""Every kind of pixel that a file may hold becomes the RGB values that a viewer shows."""

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, gradient

from moleflow.model.errors import UnsupportedImageError
from moleflow.model.images.decode import open_image, open_rgb


def test_grey_becomes_three_equal_channels() -> None:
    grey = gradient()[..., 0]
    assert np.array_equal(open_rgb(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))


def test_bilevel_becomes_0_and_255() -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    result = open_rgb(encoded(Image.fromarray(bits), "PNG"))
    assert np.array_equal(result[..., 0], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_palette_image_gets_the_colours_of_its_palette(kind: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert open_rgb(encoded(image, kind)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_a_transparent_palette_entry_is_composited_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    assert open_rgb(encoded(image, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_per_entry_palette_alpha_is_composited_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putdata([0, 1])
    assert open_rgb(encoded(image, "PNG", transparency=b"\xff\x80")).tolist() == [[[255, 0, 0], [127, 127, 127]]]


def test_a_colour_key_is_composited_on_white() -> None:
    pixels = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", transparency=(10, 20, 30))
    assert open_rgb(data).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_alpha_is_composited_on_white() -> None:
    pixels = np.array([[[100, 0, 0, 0], [100, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    assert open_rgb(encoded(Image.fromarray(pixels), "PNG")).tolist() == [
        [[255, 255, 255], [100, 0, 0], [204, 204, 204]]
    ]


def test_grey_with_alpha_is_composited_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(40, 255), (40, 0)])
    assert open_rgb(encoded(image, "PNG"))[..., 0].tolist() == [[40, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_over_its_full_range(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    assert open_rgb(encoded(Image.fromarray(values), kind))[..., 0].tolist() == [[0, 0, 1, 1, 128, 255]]


def test_16_bit_grey_reads_the_same_in_both_byte_orders() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert open_rgb(encoded(image, "TIFF"))[..., 0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = open_rgb(encoded(image, kind)).reshape(-1, 3).mean(0)
    assert np.abs(result - (255, 0, 0)).max() <= 3


def test_floating_point_values_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    with pytest.raises(UnsupportedImageError, match="The image has signed or floating-point values"):
        open_rgb(data)


def test_an_unsupported_colour_space_is_refused() -> None:
    data = encoded(Image.new("LAB", (4, 4)), "TIFF")
    with pytest.raises(UnsupportedImageError, match="mode LAB"):
        open_rgb(data)


def test_open_image_keeps_palette_indices() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0] * 3)
    image.putdata([0, 1, 2])
    assert np.asarray(open_image(encoded(image, "PNG"))).tolist() == [[0, 1, 2]]
