"""Commands in processes of their own, and what they say."""

from pathlib import Path

from forked import Finished, Processes, moleflow_code
from tiny_model import PLUGIN

TINY = (
    "--preset",
    "small",
    "--backbone",
    "tiny_backbone",
    "--plugin",
    PLUGIN,
    "--image-size",
    32,
    "--epochs",
    1,
    "--device",
    "cpu",
    "--precision",
    "fp32",
)
"""Options of commands that train, for the tiny network."""

TRAINING = (*TINY, "--folds", 1)


def run(processes: Processes, *arguments: object, before: str = "") -> Finished:
    return processes.run(moleflow_code(*arguments, before=before))


PROGRESS = "chooses the patches to remember"
"""What training says before its first epoch."""


def says(done: Finished, *hints: str) -> None:
    """Check that the only output, but for progress, is one line of error with these hints."""
    assert done.status == 1
    lines = [line for line in done.stderr.splitlines() if not line.endswith(PROGRESS)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for hint in hints:
        assert hint in done.stderr


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
