"""From patch NLLs to an image score and a pixel map."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["SMOOTHING_SIGMA", "TOP_K", "image_score", "pixel_map"]

TOP_K = 3
"""The image score is the mean of this many highest patches (method, section 6)."""

SMOOTHING_SIGMA = 4.0 / 224
"""Standard deviation of the Gaussian that smooths the pixel map, relative to the image's side (section 6)."""

_GAUSSIAN_REACH = 4.0
"""Truncation of the Gaussian, in standard deviations; loses less than 1e-4 of its mass."""


def image_score(patch_nll: torch.Tensor, top_k: int = TOP_K) -> torch.Tensor:
    """Mean of the ``top_k`` highest patches: ``(B, H, W)`` to ``(B,)``. Unbounded, may be negative."""
    flat = patch_nll.flatten(1)
    return flat.topk(min(top_k, flat.shape[1]), dim=1).values.mean(1)


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
    up = _interpolate_rows(torch.eye(cells, dtype=torch.float64), model_size)
    sigma = SMOOTHING_SIGMA * model_size
    reach = math.ceil(_GAUSSIAN_REACH * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel /= kernel.sum()
    source = (torch.arange(model_size)[:, None] + offsets.long()[None, :]).clamp(0, model_size - 1)
    smooth = torch.zeros(model_size, model_size, dtype=torch.float64)
    smooth.scatter_add_(1, source, kernel.expand(model_size, -1))
    matrix = _interpolate_rows(smooth @ up, size).float().numpy()
    matrix.setflags(write=False)
    return matrix


def _interpolate_rows(matrix: torch.Tensor, rows: int) -> torch.Tensor:
    """Linear interpolation along the first axis (half-pixel centres, as ``align_corners=False``)."""
    return F.interpolate(matrix.T[None], size=rows, mode="linear", align_corners=False)[0].T
