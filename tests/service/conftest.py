"""Fixtures of the service's tests."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    """A running service with default limits and the dummy model, shared by the tests of a module."""
    from running import run_server

    with run_server() as running:
        yield running


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the code that jobs run in the place of training."""
    from fake_training import instead_of_training

    return instead_of_training(monkeypatch)
