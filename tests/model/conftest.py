"""A checkpoint of three tiny products for the tests of the model."""

from pathlib import Path

import pytest
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import FUSED, tiny_checkpoint, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Bolt, nut and gear, whose images are those of products 0, 1 and 2."""
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "factory.safetensors")


@pytest.fixture(scope="session")
def detector(checkpoint: Checkpoint) -> Detector:
    """A detector for it."""
    return Detector.load(checkpoint.path, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same products with memories."""
    return tiny_checkpoint(tmp_path_factory.mktemp("fused") / "fused.safetensors", config=tiny_config(scoring=FUSED))


@pytest.fixture(scope="session")
def converted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where networks are kept that were converted for OpenVINO, which takes seconds."""
    return tmp_path_factory.mktemp("converted")
