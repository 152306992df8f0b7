"""Three tiny products on disk, a preset that trains in a moment, and test images with their evaluation."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import product_image, tiny_checkpoint, tiny_config, write_product, write_tested_product

from moleflow.model.detector import Detector
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.data.selection import load_test_categories
from moleflow.training.evaluation.evaluate import Measured, evaluate
from moleflow.training.evaluation.records import Evaluation


@pytest.fixture(scope="session")
def tiny_preset() -> Preset:
    """Two epochs of a tiny model with a held-out split, without altered copies: one fit per product."""
    training = TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, min_held_out=3, folds=1, altered_copies=0)
    return Preset(name="tiny", description="for tests", model=tiny_config(), training=training)


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolt, nut and gear, ten images each; read-only."""
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(("bolt", "nut", "gear")):
        write_product(root, name, kind, count=10)
    return root


@pytest.fixture(scope="session")
def tested_products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test images of bolt and nut with masks, and of gear without; not to be changed.

    One good bolt looks like a nut, and one defective nut has no mask.
    """
    root = tmp_path_factory.mktemp("tested")
    write_tested_product(root, "bolt", 0)
    write_tested_product(root, "nut", 1)
    write_tested_product(root, "gear", 2, masks=False)
    Image.fromarray(product_image(1, 300)).save(root / "bolt" / "test" / "good" / "300.png")
    (root / "nut" / "ground_truth" / "spot" / "202_mask.png").unlink()
    return root


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A detector of bolt, nut and gear."""
    path = tiny_checkpoint(tmp_path_factory.mktemp("detector") / "factory.safetensors").path
    return Detector.load(path, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def evaluated(tiny_detector: Detector, tested_products: Path) -> tuple[Evaluation, list[Measured]]:
    """The evaluation of all test images."""
    categories = load_test_categories(tested_products, ["bolt", "nut", "gear"])
    return evaluate(tiny_detector, categories, batch_size=3)
