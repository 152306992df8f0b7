"""Three tiny products on disk, and a preset that learns one in a moment."""

from pathlib import Path

import pytest
from tiny_fixtures import one_thread, tiny_backbone  # noqa: F401
from tiny_model import tiny_config, write_product

from training.config import Preset, TrainingConfig


@pytest.fixture(scope="session")
def tiny_preset() -> Preset:
    """Two epochs of a tiny model, and some pictures held out: one fit a product."""
    training = TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, min_held_out=3, folds=1)
    return Preset(name="tiny", description="for tests", model=tiny_config(), training=training)


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolt, nut and gear, ten pictures each; not to be changed."""
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(("bolt", "nut", "gear")):
        write_product(root, name, kind, count=10)
    return root
