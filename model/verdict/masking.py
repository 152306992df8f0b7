"""Scores and maps of the inspected patches of an image alone, in NumPy."""

import numpy as np

from moleflow.model.verdict.maps import pixel_map

__all__ = ["cut_grid", "inspected_score", "map_peak", "pixel_mask"]


def inspected_score(patches: np.ndarray, inspected: np.ndarray, top_k: int) -> float:
    """The image score, the mean of the ``top_k`` highest values of ``patches`` ``(H, W)`` where ``inspected``."""
    return float(np.sort(patches[inspected])[::-1][:top_k].mean())


def cut_grid(grid_map: np.ndarray, inspected: np.ndarray) -> np.ndarray:
    """A patch map ``(H, W)`` that has the lowest inspected value wherever it is not inspected.

    Smoothed, no defect outside reaches the inspected area, and none inside gains by its surroundings.
    """
    return np.where(inspected, grid_map, grid_map[inspected].min())


def map_peak(grid_map: np.ndarray, model_size: int, inspected: np.ndarray | None) -> float:
    """The maximum of the pixel map at the model's size of a patch map ``(H, W)``, where ``inspected`` or anywhere."""
    if inspected is None:
        return float(pixel_map(grid_map, model_size, model_size, model_size).max())
    pixels = pixel_map(cut_grid(grid_map, inspected), model_size, model_size, model_size)
    return float(pixels[pixel_mask(inspected, model_size, model_size)].max())


def pixel_mask(inspected: np.ndarray, height: int, width: int) -> np.ndarray:
    """Whether each pixel of an image lies in an inspected patch: ``(H, W)`` to ``(height, width)`` bool."""
    rows, columns = (
        (2 * np.arange(size) + 1) * cells // (2 * size)  # the patch of each pixel's centre
        for size, cells in zip((height, width), inspected.shape, strict=True)
    )
    return inspected[rows][:, columns]
