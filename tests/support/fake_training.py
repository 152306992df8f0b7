"""Jobs whose process runs a command in the place of training."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moleflow.service.responses.teaching import Job
from moleflow.service.settings import Settings
from moleflow.service.teaching import runner

__all__ = ["COUNTS", "WAITS", "Says", "instead_of_training"]

Says = Callable[[str], None]

WAITS = "import time; time.sleep(600)"
"""A training that takes long."""

COUNTS = (
    "import sys, pathlib; count = len(list(pathlib.Path(sys.argv[1]).rglob('*.png')));"
    "sys.exit(f'error: {sys.argv[2]} {sys.argv[3]} {count}')"
)
"""One that says what it was asked for: the product, whether to replace it, and the number of images."""


def instead_of_training(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Sets the code that runs instead of training. Its arguments are the job's folder, the product, whether to replace
    it, and the checkpoint."""

    def runs(code: str) -> None:
        def command(settings: Settings, job: Job, folder: Path, *, replace: bool) -> list[str]:
            return [sys.executable, "-c", code, str(folder), job.task, str(replace), str(settings.checkpoint)]

        monkeypatch.setattr(runner, "train_command", command)

    return runs
