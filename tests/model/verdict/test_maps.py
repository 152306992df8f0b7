"""The pixel map against independent references."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from moleflow.model.verdict.maps import pixel_map


def reference(grid: np.ndarray, model_size: int, height: int, width: int) -> np.ndarray:
    """Bilinear to the model's size, SciPy's Gaussian of σ = 4 at 224, bilinear to the image's size."""

    def bilinear(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
        x = torch.from_numpy(values)[None, None]
        return F.interpolate(x, size=(rows, columns), mode="bilinear", align_corners=False)[0, 0].numpy()

    large = bilinear(grid.astype(np.float64), model_size, model_size)
    smooth = scipy.ndimage.gaussian_filter(large, 4 * model_size / 224, mode="nearest", truncate=4.0)
    return bilinear(smooth, height, width)


@pytest.mark.parametrize(
    ("grid", "model_size", "height", "width"),
    [((28, 28), 224, 224, 224), ((28, 28), 224, 300, 451), ((8, 8), 64, 37, 20), ((14, 14), 224, 224, 90)],
)
def test_the_pixel_map_equals_interpolation_then_gaussian_then_interpolation(
    grid: tuple[int, int], model_size: int, height: int, width: int
) -> None:
    values = np.random.default_rng(0).normal(300, 200, grid).astype(np.float32)
    found = pixel_map(values, model_size, height, width)
    assert found.shape == (height, width)
    assert found.dtype == np.float32
    assert np.abs(found - reference(values, model_size, height, width)).max() < 1e-3  # for values in the hundreds


def test_a_constant_map_stays_constant_up_to_its_edges() -> None:
    assert pixel_map(np.full((4, 4), 7.0), 32, 50, 40) == pytest.approx(np.full((50, 40), 7.0), rel=1e-6)


def test_the_maximum_stays_at_the_highest_patch() -> None:
    grid = np.zeros((8, 8), np.float32)
    grid[2, 5] = 100
    row, column = np.unravel_index(pixel_map(grid, 64, 128, 128).argmax(), (128, 128))
    assert row // 16 == 2
    assert column // 16 == 5


@pytest.mark.parametrize("value", [-1e6, 1e9])
def test_values_are_never_clamped(value: float) -> None:
    assert pixel_map(np.full((4, 4), value), 32, 32, 32) == pytest.approx(np.full((32, 32), value), rel=1e-5)
