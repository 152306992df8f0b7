"""A large JPEG is decoded at a reduced scale for the model, and gives what the full image gives."""

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded

from moleflow.model.errors import ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.decode import MIN_OVERSAMPLING, open_for_model, open_rgb
from moleflow.model.images.preprocessing import Preprocessing

RESIZE = Preprocessing(image_size=32, mean=(0, 0, 0), std=(1, 1, 1)).resize


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
    data = encoded(Image.fromarray(detailed(512, 768)), "JPEG", quality=95, exif=exif.tobytes())
    full, reduced = open_rgb(data), open_for_model(data, 32)
    assert (reduced.height, reduced.width) == full.shape[:2]
    difference = np.abs(reduced.pixels.astype(int) - RESIZE(full))
    assert 0 < difference.max() <= 1  # 0 would mean decoding at full scale


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_large_jpegs_in_other_colour_spaces_are_reduced_too(mode: str) -> None:
    data = encoded(Image.fromarray(detailed(256, 256)).convert(mode), "JPEG", quality=95)
    difference = np.abs(open_for_model(data, 32).pixels.astype(int) - RESIZE(open_rgb(data)))
    assert 0 < difference.max() <= 2


@pytest.mark.parametrize(
    ("height", "width"), [(255, 512), (254, 512), (256, 257), (2 * 32 * MIN_OVERSAMPLING - 2, 1024)]
)
def test_a_jpeg_that_is_too_small_or_not_divisible_is_decoded_at_full_scale(height: int, width: int) -> None:
    data = encoded(Image.fromarray(detailed(height, width)), "JPEG")
    small = open_for_model(data, 32)
    assert np.array_equal(small.pixels, RESIZE(open_rgb(data)))
    assert (small.height, small.width) == (height, width)


@pytest.mark.parametrize("kind", ["PNG", "WebP", "BMP", "TIFF"])
def test_only_jpegs_are_reduced(kind: str) -> None:
    data = encoded(Image.fromarray(detailed(256, 256)), kind)
    assert np.array_equal(open_for_model(data, 32).pixels, RESIZE(open_rgb(data)))


def test_the_pixel_limit_applies_to_the_full_size_not_the_reduced_one() -> None:
    data = encoded(Image.fromarray(detailed(256, 256)), "JPEG")
    with pytest.raises(ImageTooLargeError, match="65,536 pixels"):
        open_for_model(data, 32, max_pixels=65_535)


def test_a_large_truncated_jpeg_is_refused() -> None:
    data = encoded(Image.fromarray(detailed(256, 256)), "JPEG")
    with pytest.raises(UnsupportedImageError):
        open_for_model(data[: len(data) // 2], 32)
