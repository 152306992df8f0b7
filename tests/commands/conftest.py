"""Products and a checkpoint for commands that read and write files."""

from pathlib import Path

import pytest
from tiny_model import tiny_checkpoint, write_product, write_tested_product


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "factory.safetensors").path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolts and gears to train on, nuts to test on."""
    root = tmp_path_factory.mktemp("data")
    write_product(root, "bolt", 0, count=6)
    write_product(root, "gear", 2, count=6)
    write_tested_product(root, "nut", 1)
    return root
