"""Altered copies of good images: light, a pixel of shift and JPEG, the same for the same file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moleflow.training.embeddings import alterations
from moleflow.training.embeddings.alterations import AlteredReader, altered


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    """A gradient that JPEG hardly changes."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack((60 + rows * 2, 80 + columns, 120 + rows), 2).astype(np.uint8)


def draws(count: int) -> list[np.ndarray]:
    return [altered(smooth(), np.random.default_rng(seed)) for seed in range(count)]


def test_a_copy_has_the_size_of_the_image_and_is_close_to_it() -> None:
    for copy in draws(30):
        assert copy.shape == smooth().shape
        assert copy.dtype == np.uint8
        # Five percent of light, a pixel of at most three levels, and what JPEG adds.
        assert np.abs(copy.astype(int) - smooth()).mean() < 0.05 * smooth().mean() + 5


def test_light_varies_to_both_sides_by_five_percent_at_most() -> None:
    ratios = [copy.mean() / smooth().mean() for copy in draws(60)]
    assert 0.94 < min(ratios) < 0.97
    assert 1.03 < max(ratios) < 1.06


def test_a_copy_is_shifted_by_a_pixel_at_most_in_every_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alterations, "LIGHT", 0.0)
    monkeypatch.setattr(alterations, "LEAST_QUALITY", 95)
    image = np.zeros((33, 33, 3), np.uint8)
    image[16, 16] = 255
    found = {
        tuple(
            int(i) - 16 for i in np.unravel_index(altered(image, np.random.default_rng(seed)).sum(2).argmax(), (33, 33))
        )
        for seed in range(120)
    }
    assert found == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


def test_a_reader_gives_the_same_copy_of_the_same_file_and_another_for_another_number(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).save(path)
    reader = AlteredReader(None, lambda image: image)
    assert np.array_equal(reader(path, 32), reader(path, 32))
    assert not np.array_equal(reader(path, 32), AlteredReader(None, lambda image: image, copy=1)(path, 32))


def test_an_image_is_altered_at_its_own_resolution_before_it_is_resized(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).save(path)
    seen = []
    AlteredReader(None, lambda image: (seen.append(image.shape), image)[1])(path, 32)
    assert seen == [(40, 56, 3)]


def test_16_bit_values_are_scaled_by_the_products_white_level(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 40), 1023, np.uint16)).save(path)
    assert AlteredReader(1023, lambda image: image)(path, 32).mean() > 240
    assert AlteredReader(None, lambda image: image)(path, 32).mean() < 10
