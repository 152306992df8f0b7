"""Products with test images for the benchmarks' tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import product_image, write_product


@pytest.fixture(scope="session")
def judged_products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products with nine training images each, three good test images and one with a marked defect."""
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(("bolt", "nut")):
        write_product(root / name / "train", "good", kind, count=9)
        write_product(root / name / "test", "good", kind, count=3)
        spoiled, mask = product_image(kind, 50), np.zeros((32, 32), np.uint8)
        spoiled[8:20, 4:16], mask[8:20, 4:16] = 255, 255
        for part, image in (("test/spot/0.png", spoiled), ("ground_truth/spot/0_mask.png", mask)):
            (root / name / part).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / name / part)
    return root
