"""A cluster of two nodes for all tests, and commands that use it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from two_nodes import Command, TwoNodes


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[TwoNodes]:
    pytest.importorskip("ray", reason="needs the extra ray")
    nodes = TwoNodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends those that still run at the end."""
    started: list[Command] = []

    def start(*arguments: object, **options: Any) -> Command:
        started.append(Command(tmp_path / f"output{len(started)}", *arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
