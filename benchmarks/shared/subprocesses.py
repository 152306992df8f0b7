"""How benchmarks start other programs: ``-m benchmarks.…`` and ``-m moleflow``, from any working directory."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROOT", "environment", "module_command"]

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""


def module_command(module: str, *arguments: object, python: str | Path = sys.executable) -> list[str]:
    """The command line that runs a module; give ``environment`` to the process."""
    return [str(python), "-m", module, *map(str, arguments)]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables with ``changes``, and the repository first on ``PYTHONPATH``."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **(changes or {}), "PYTHONPATH": os.pathsep.join(paths)}
