"""Benchmarks that score images themselves come to the figures of ``moleflow evaluate``."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import product_image, tiny_checkpoint

from benchmarks.accuracy import judging
from benchmarks.accuracy.products import Product
from benchmarks.baselines import accuracy
from moleflow.model.detector import Detector
from moleflow.model.verdict.maps import SMOOTHING_SIGMA, pixel_map
from moleflow.training.data.datasets import Category, load_category
from moleflow.training.evaluation.evaluate import Measured, evaluate
from moleflow.training.evaluation.metrics import EVALUATION_SIDE

SIDE = EVALUATION_SIDE
"""Images have the size at which maps are compared, so that no benchmark resizes a map."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors"), device="cpu")


@pytest.fixture(scope="module")
def category(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Category:
    """A learned product with good images, marked defects, and a defect without mask."""
    root, name = tmp_path_factory.mktemp("data"), detector.tasks[0].name
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[60:150, 30:120] = 255
    for number in range(9):
        good, defective = product_image(0, number, SIDE), product_image(0, 50 + number, SIDE)
        defective[60:150, 30:120] = defective[60:150, 30:120] // 2 + 20 * number
        files = [("train/good", good)] if number < 3 else [("test/good", good), ("test/spot", defective)]
        files += [("ground_truth/spot", mask)] if number > 3 else []
        for folder, pixels in files:
            (root / name / folder).mkdir(parents=True, exist_ok=True)
            suffix = "_mask" if pixels is mask else ""
            Image.fromarray(pixels).save(root / name / folder / f"{number}{suffix}.png")
    return load_category(root, name)


@pytest.fixture(scope="module")
def measured(detector: Detector, category: Category) -> Measured:
    return evaluate(detector, [category])[1][0]


def test_the_comparison_with_baselines_measures_what_evaluate_does(
    detector: Detector, category: Category, measured: Measured
) -> None:
    found = accuracy.measure(category, accuracy.ours(detector, category))
    assert (found["good"], found["defective"]) == (measured.figures.good, measured.figures.defective)
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro"):
        assert found[name] == pytest.approx(getattr(measured.figures.routed, name), abs=1e-12)
    assert 0 < found["pixel_ap"] < 1


def test_trials_measure_what_evaluate_does(category: Category, measured: Measured) -> None:
    maps = torch.stack([torch.from_numpy(each.named.grid_map) for each in measured.outcomes])
    product = Product(category, (), category.train, ())
    held_out = {"good": maps[:3], "pseudo": maps[:0], "test": maps}
    found = judging.judge_all(held_out, product, side=32)
    for name in judging.COLUMNS:
        assert found[f"test_{name}"] == pytest.approx(100 * getattr(measured.figures.named, name), abs=1e-9)


def test_smoothing_in_trials_is_that_of_prediction(measured: Measured) -> None:
    grid_map = measured.outcomes[0].named.grid_map
    expected = pixel_map(grid_map, 32, SIDE, SIDE)
    assert np.array_equal(judging.anomaly_map(grid_map, 32), expected)
    nearly = judging.anomaly_map(grid_map, 32, SMOOTHING_SIGMA * (1 + 1e-9))  # by the way of every other width
    assert np.abs(nearly - expected).max() < 1e-3 * np.abs(expected).max()
