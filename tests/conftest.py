"""What tests of several folders share: the helpers in ``support``, and a server that forks processes."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moleflow.model.runtime.threads import prepare_threads

# Before PyTorch is loaded, and for every process that a test starts: tiny tensors gain nothing from threads, whose
# waiting takes processors from the other test processes, and one thread gives the same bits on every machine.
# Converting a network for another engine takes seconds.
os.environ |= {"MOLEFLOW_THREADS": "1", "OMP_NUM_THREADS": "1", "MOLEFLOW_ENGINE": "torch"}
prepare_threads()

sys.path.insert(0, str(Path(__file__).parent / "support"))

if TYPE_CHECKING:
    from forked import Processes


def pytest_collection_finish() -> None:
    """Keep what all modules imported, hundreds of thousands of objects, out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def processes() -> Iterator["Processes"]:
    """Starts real processes that have PyTorch imported already."""
    from forked import Processes

    with Processes() as processes:
        yield processes
