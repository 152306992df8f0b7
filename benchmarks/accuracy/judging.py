"""Figures of a trial: of pseudo-defects against held-out good images, and of the test images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy.products import Product
from moleflow.model.verdict.maps import SMOOTHING_SIGMA, pixel_map
from moleflow.model.verdict.scoring import TOP_K, image_score
from moleflow.training.data.datasets import Sample
from moleflow.training.evaluation.figures import category_figures, labelled_pixels
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores

__all__ = ["COLUMNS", "HEADINGS", "anomaly_map", "cells", "judge_all"]

COLUMNS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")


def judge_all(
    maps: Mapping[str, torch.Tensor], product: Product, side: int, *, top_k: int = TOP_K, sigma: float = SMOOTHING_SIGMA
) -> dict[str, float]:
    """Figures of pseudo-defects against held-out good images, and of the test images, in percent."""
    held_out = [Sample(path, None) for path in product.held_out]
    cases: dict[str, tuple[torch.Tensor, Sequence[Sample]]] = {
        "pseudo": (torch.cat((maps["good"], maps["pseudo"])), [*held_out, *product.pseudo]),
        "test": (maps["test"], product.category.test),
    }
    found = {}
    for kind, (grid_maps, samples) in cases.items():
        pixels = PixelScores()
        for sample, grid_map in zip(samples, grid_maps.numpy(), strict=True):
            pixels.append(labelled_pixels(sample, anomaly_map(grid_map, side, sigma)))
        figures = category_figures(samples, image_score(grid_maps, top_k).tolist(), pixels)
        for column in COLUMNS:
            value = getattr(figures, column)
            found[f"{kind}_{column}"] = float("nan") if value is None else 100 * value
    return found


def anomaly_map(grid_map: np.ndarray, side: int, sigma: float = SMOOTHING_SIGMA) -> np.ndarray:
    """A patch map ``(H, W)`` at the evaluation size, for a model whose images have ``side`` pixels.

    As in prediction, but with any ``sigma``, the Gaussian's standard deviation as a fraction of ``side``.
    """
    if sigma == SMOOTHING_SIGMA:
        return pixel_map(grid_map, side, EVALUATION_SIDE, EVALUATION_SIDE)
    grid = torch.from_numpy(grid_map)[None, None]
    large = F.interpolate(grid, size=side, mode="bilinear", align_corners=False)[0, 0].numpy()
    soft = torch.from_numpy(gaussian_filter(large, sigma * side, mode="nearest"))[None, None]
    return F.interpolate(soft, size=EVALUATION_SIDE, mode="bilinear", align_corners=False)[0, 0].numpy()


HEADINGS = (
    "held-out NLL / D",
    "pseudo: image AUROC",
    "pixel AUROC",
    "pixel AP",
    "AUPRO",
    "test: image AUROC",
    "pixel AUROC",
    "pixel AP",
    "AUPRO",
)
"""Headings of ``cells``."""


def cells(figures: Sequence[Mapping[str, float]]) -> list[str]:
    """Means of the NLL and of the metrics, those of the pseudo-defects first."""
    return [f"{np.mean([each['held_out_nll'] for each in figures]):.3f}"] + [
        f"{np.mean([each[f'{kind}_{column}'] for each in figures]):.1f}"
        for kind in ("pseudo", "test")
        for column in COLUMNS
    ]
