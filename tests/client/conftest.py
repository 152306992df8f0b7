"""The client's tests use the service of ``tests/service``."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the code that jobs run in the place of training."""
    from fake_training import instead_of_training

    return instead_of_training(monkeypatch)
