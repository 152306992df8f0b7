"""What tests of several folders share: the helpers in ``support``, and a server that forks processes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

if TYPE_CHECKING:
    from forked import Processes


@pytest.fixture(scope="session")
def processes() -> Iterator["Processes"]:
    """Starts real processes that have PyTorch imported already."""
    from forked import Processes

    with Processes() as processes:
        yield processes
