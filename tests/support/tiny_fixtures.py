"""Fixtures shared by the tests of the model and of training; their ``conftest`` modules import them."""

from collections.abc import Iterator

import pytest
import torch
from tiny_model import PLUGIN

from moleflow.model.features.backbone import import_plugin

__all__ = ["one_thread", "tiny_backbone"]


@pytest.fixture(scope="session", autouse=True)
def tiny_backbone() -> None:
    """Makes the small network known to timm."""
    import_plugin(str(PLUGIN))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and results are then the same bits on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
