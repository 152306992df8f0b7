"""One record of resizing and normalisation, the same for training and serving."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from moleflow.model.images.preprocessing import Preprocessing

RECORD = Preprocessing(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1))


def rgb_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (20, 90), (31, 33)])
def test_the_whole_image_is_resized_without_cropping(height: int, width: int) -> None:
    expected = Image.fromarray(rgb_image(height, width)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(RECORD.resize(rgb_image(height, width)), np.asarray(expected))


def test_an_image_of_the_right_size_is_not_copied() -> None:
    image = rgb_image(32, 32)
    assert RECORD.resize(image) is image


def test_fine_stripes_are_averaged_without_aliasing() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 255
    assert np.ptp(RECORD.resize(stripes).astype(int)[2:-2]) <= 2


def test_normalisation_is_one_multiply_add_of_byte_values() -> None:
    scale, offset = map(torch.from_numpy, RECORD.scale_and_offset())
    values = torch.arange(256)[:, None].float()
    expected = (values / 255 - torch.tensor(RECORD.mean)) / torch.tensor(RECORD.std)
    assert torch.allclose(values * scale + offset, expected, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((4, 4), np.uint8), id="grey"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), id="alpha"),
        pytest.param(np.zeros((4, 4, 3), np.float32), id="float"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), id="empty"),
        pytest.param(np.zeros((1, 4, 4, 3), np.uint8), id="batch"),
    ],
)
def test_an_array_that_is_not_rgb_is_refused_with_its_shape(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(height, width, 3\) uint8 or uint16 and not empty; got shape"):
        RECORD.resize(image)


def test_the_record_survives_serialisation() -> None:
    assert Preprocessing.model_validate_json(RECORD.model_dump_json()) == RECORD


def test_an_unknown_field_of_a_newer_record_is_refused() -> None:
    with pytest.raises(ValidationError, match="crop"):
        Preprocessing.model_validate(RECORD.model_dump() | {"crop": 0.9})
