"""Fixtures of the service's tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tests import the helper modules (dummy, sample_images, running) by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    """A running service with default limits and the dummy model, shared by the tests of a module."""
    from running import run_server

    with run_server() as running:
        yield running
