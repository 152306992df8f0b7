"""What `--ray` is refused with, before Ray is asked."""

from pathlib import Path

import pytest
from command_lines import TRAINING, listed, run, says
from forked import Processes

WITHOUT_RAY = "import sys; sys.modules['ray'] = None"
"""As where it is not installed."""


@pytest.mark.parametrize(
    ("options", "hints"),
    [
        (("--ray", "auto"), ("Ray is not installed", "moleflow[ray]")),
        (("--ray", "auto", "--replace"), ("--replace is for learning here",)),
    ],
)
def test_training_says_what_is_missing(
    processes: Processes, data: Path, tmp_path: Path, options: tuple[str, ...], hints: tuple[str, ...]
) -> None:
    call = ("train", data, "--checkpoint", tmp_path / "new", *TRAINING, *options)
    says(run(processes, *call, before=WITHOUT_RAY), *hints)
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ((), "--ray needs --output FOLDER"),
        (("--output", "rows.csv"), "--ray needs --output FOLDER"),
        (("--output", "rows", "--watch"), "--watch cannot be used with --ray"),
        (("--output", "rows", "--json"), "--json cannot be used with --ray"),
        (("--output", "rows", "--save-overlay", "out"), "--save-overlay cannot be used with --ray"),
        (("--output", "rows"), "Ray is not installed"),
    ],
)
def test_predicting_says_what_does_not_go_with_ray(
    processes: Processes, data: Path, checkpoint: Path, options: tuple[str, ...], hint: str
) -> None:
    says(run(processes, "predict", checkpoint, data, "--ray", "auto", *options, before=WITHOUT_RAY), hint)
