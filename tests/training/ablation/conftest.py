"""Two tiny products with test images, and a finished study of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import product_image, write_product
from tiny_studies import PAIR, TASKS, ablation

from moleflow.training.ablation.runner import RowResult
from moleflow.training.ablation.studies import Row


def write_tests(folder: Path, kind: int) -> None:
    """The MVTec layout: three good test images, and three with a white square, of which two have a mask."""
    for number in range(3):
        good = product_image(kind, 40 + number)
        bad, mask = product_image(kind, 50 + number), np.zeros((32, 32), dtype=np.uint8)
        bad[8:20, 4:16], mask[8:20, 4:16] = 255, 255
        images = {"test/good": good, "test/spot": bad}
        if number:
            images["ground_truth/spot"] = mask
        for part, rgb_image in images.items():
            name = f"{number}_mask.png" if part.startswith("ground") else f"{number}.png"
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb_image).save(folder / part / name)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(TASKS):
        write_product(root / name / "train", "good", kind, count=8)
        write_tests(root / name, kind)
    return root


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Row, RowResult]]]:
    """The output folder and results of a two-row study; read-only."""
    out = tmp_path_factory.mktemp("out")
    return out, ablation(data, out).run(PAIR)
