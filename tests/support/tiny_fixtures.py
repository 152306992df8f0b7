"""A fixture shared by the tests of the model and of training; their ``conftest`` modules import it."""

import pytest
from tiny_model import PLUGIN

from moleflow.model.features.backbone import import_plugin

__all__ = ["tiny_backbone"]


@pytest.fixture(scope="session", autouse=True)
def tiny_backbone() -> None:
    """Makes the small network known to timm."""
    import_plugin(str(PLUGIN))
