"""From the anomaly of patches to a pixel map, in NumPy."""

import functools
import math

import numpy as np

__all__ = ["SMOOTHING_SIGMA", "pixel_map"]

SMOOTHING_SIGMA = 4.0 / 224
"""Standard deviation of the Gaussian that smooths the pixel map, relative to the image's side (section 6)."""

_GAUSSIAN_REACH = 4.0
"""Truncation of the Gaussian, in standard deviations; loses less than 1e-4 of its mass."""


def pixel_map(grid_map: np.ndarray, model_size: int, height: int, width: int) -> np.ndarray:
    """Upsample a patch map ``(H, W)`` to ``(height, width)``: bilinear to the model's size, Gaussian, bilinear to the
    image.

    Every step is linear and separable, so the whole is one matrix product from each side, with cached matrices.
    """
    rows = _resampling_matrix(grid_map.shape[0], model_size, height)
    columns = _resampling_matrix(grid_map.shape[1], model_size, width)
    return rows @ grid_map.astype(np.float32) @ columns.T


@functools.lru_cache(maxsize=64)
def _resampling_matrix(cells: int, model_size: int, size: int) -> np.ndarray:
    """The ``(size, cells)`` matrix of one axis: bilinear, Gaussian (edges replicated), bilinear. Built in float64."""
    up = _interpolate_rows(np.eye(cells), model_size)
    sigma = SMOOTHING_SIGMA * model_size
    reach = math.ceil(_GAUSSIAN_REACH * sigma)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * np.square(offsets / sigma))
    places = np.arange(model_size)[:, None]
    smooth = np.zeros((model_size, model_size))
    np.add.at(smooth, (places, np.clip(places + offsets, 0, model_size - 1)), kernel / kernel.sum())
    matrix = _interpolate_rows(smooth @ up, size).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def _interpolate_rows(matrix: np.ndarray, rows: int) -> np.ndarray:
    """Linear interpolation along the first axis (half-pixel centres, as PyTorch's ``align_corners=False``)."""
    last = len(matrix) - 1
    places = np.maximum((np.arange(rows) + 0.5) * (len(matrix) / rows) - 0.5, 0)
    low = np.minimum(places.astype(int), last)
    share = (places - low)[:, None]
    return (1 - share) * matrix[low] + share * matrix[np.minimum(low + 1, last)]
