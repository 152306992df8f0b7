"""A command whose results cannot be written says so in one line, before the work if possible."""

import json
import os
from pathlib import Path

import pytest
from command_lines import listed, run, says
from forked import Processes
from tiny_model import PLUGIN


def test_no_output_may_be_an_input(processes: Processes, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    link, before = tmp_path / "link", checkpoint.read_bytes()
    link.symlink_to(checkpoint)
    for option in ("--json", "--report"):
        says(run(processes, "evaluate", checkpoint, data, option, link), "would overwrite the input")
    assert checkpoint.read_bytes() == before
    (tmp_path / "a.json").write_text("{}")
    says(run(processes, "summarise", tmp_path / "a.json", "--json", tmp_path / "a.json"), "would overwrite the input")


@pytest.mark.parametrize("where", [("evaluate", "--json"), ("evaluate", "--report"), ("ablate", "--markdown")])
@pytest.mark.parametrize("target", ["folder", "/dev/full"])
def test_an_unwritable_output_is_reported_before_the_work(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path, where: tuple[str, str], target: str
) -> None:
    (tmp_path / "folder").mkdir()
    command, option = where
    if command == "evaluate":
        arguments: tuple[object, ...] = ("evaluate", checkpoint, data, "--plugin", PLUGIN)
    else:
        arguments = ("ablate", "core", data, "--task", "nut", "--out", tmp_path / "out", "--plugin", PLUGIN)
    says(run(processes, *arguments, option, tmp_path / target), "cannot be written")
    assert listed(tmp_path) == ["folder"]


OUTPUTS = {
    "full": "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "closed": "import os, sys; sys.stdout = None; os.close(1)",
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("command", ["inspect", "inspect --json", "predict", "help"])
def test_a_failing_standard_output_is_one_error(
    processes: Processes, data: Path, checkpoint: Path, output: str, command: str
) -> None:
    arguments = {
        "inspect": ("inspect", checkpoint),
        "inspect --json": ("inspect", checkpoint, "--json"),
        "predict": ("predict", checkpoint, data / "bolt", "--plugin", PLUGIN),
        "help": ("--help",),
    }[command]
    says(run(processes, *arguments, before=OUTPUTS[output]), "standard output cannot be used")


def test_results_are_written_even_if_they_cannot_be_printed(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", checkpoint, data, "--task", "nut", "--plugin", PLUGIN, "--json", tmp_path / "found.json")
    done = run(processes, *arguments, before=OUTPUTS["full"])
    assert done.status == 1
    assert json.loads((tmp_path / "found.json").read_text())["products"] == ["bolt", "nut", "gear"]


def test_results_of_a_checkpoint_with_an_undecodable_name_can_be_written(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    odd.write_bytes(checkpoint.read_bytes())
    done = run(processes, "inspect", odd)
    assert done.status == 0, done.stderr
    done = run(processes, "predict", odd, data / "bolt" / "0.png", "--plugin", PLUGIN, "--json")
    assert done.status == 0, done.stderr
    json.loads(done.stdout.encode())
    arguments = ("--task", "nut", "--plugin", PLUGIN, "--json", tmp_path / "e.json", "--report", tmp_path / "e.html")
    done = run(processes, "evaluate", odd, data, *arguments)
    assert done.status == 0, done.stderr
