"""A running service for every test that asks for one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The helpers beside the tests (dummy, images, running) are imported by name, whichever way pytest imports tests.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    """A running service with default limits and the dummy model, shared by the tests of a module."""
    from running import run_server

    with run_server() as running:
        yield running
