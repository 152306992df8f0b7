"""The script that makes the baselines' environment, run for real with a stand-in for Python."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/baselines/setup.sh"

STAND_IN = """#!/bin/sh
case "$1 ${2:-}" in
"-c import ensurepip") exit "${NO_ENSUREPIP:-0}" ;;
"-c "*) exit 0 ;;
"-m venv")
    echo "$*" >> "$CALLS"
    for last; do :; done
    mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; echo package > "$last/package" ;;
"-m pip")
    [ "$3" != --version ] || exit "${NO_PIP:-0}"
    shift 2
    echo "pip $*" >> "$CALLS" ;;
esac
"""


class Place:
    """A folder for the environment, and a fake Python."""

    def __init__(self, root: Path) -> None:
        self.venv, self.log, self.python = root / "the baselines", root / "calls", root / "some python"
        self.python.write_text(STAND_IN, encoding="utf-8")
        self.python.chmod(0o755)

    def set_up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        usual = {"PYTHON": str(self.python), "CALLS": str(self.log), "TORCH": "torch==2", "TORCH_INDEX_URL": ""}
        return subprocess.run(
            ["sh", SCRIPT, self.venv], env=os.environ | usual | variables, capture_output=True, text=True
        )

    def calls(self) -> list[str]:
        """The calls since the last time."""
        done = self.log.read_text(encoding="utf-8").splitlines()
        self.log.unlink()
        return done


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_environment_is_created_and_marked_as_ours(place: Place) -> None:
    assert place.set_up().returncode == 0
    made, torch, baselines, own = place.calls()
    assert made == f"-m venv {place.venv}"
    assert torch == "pip install torch==2"
    assert baselines.endswith("baselines/requirements.txt")
    assert "--no-deps --editable" in own
    assert (place.venv / ".moleflow-made").exists()


def test_without_ensurepip_the_interpreters_pip_is_used(place: Place) -> None:
    assert place.set_up(NO_ENSUREPIP="1").returncode == 0
    assert place.calls()[:2] == [
        f"-m venv --without-pip {place.venv}",
        f"pip --python {place.venv}/bin/python install pip",
    ]


def test_a_second_run_updates_the_environment_without_recreating_it(place: Place) -> None:
    place.set_up()
    place.calls()
    assert place.set_up().returncode == 0
    assert all(call.startswith("pip install") for call in place.calls())


def test_an_environment_interrupted_before_it_had_pip_is_recreated(place: Place) -> None:
    place.set_up()
    place.calls()
    half = place.venv / "half a package"
    half.touch()
    assert place.set_up(NO_PIP="1").returncode == 0
    assert place.calls()[0] == f"-m venv {place.venv}"
    assert not half.exists()


def test_a_foreign_environment_is_never_emptied(place: Place) -> None:
    place.set_up()
    (place.venv / ".moleflow-made").unlink()
    place.set_up(NO_PIP="1")
    assert (place.venv / "package").exists()


def test_a_folder_with_other_files_is_rejected(place: Place) -> None:
    place.venv.mkdir()
    (place.venv / "thesis.txt").touch()
    found = place.set_up()
    assert found.returncode != 0
    assert "holds files" in found.stderr
    assert (place.venv / "thesis.txt").exists()
