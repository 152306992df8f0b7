"""The script that sets up the Makefile's environment, run with a fake Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/environment.sh"

STAND_IN = """#!/bin/sh
case "$1 ${2:-}" in
"-c "*version_info*) exit "${TOO_OLD:-0}" ;;
"-c "*) exit 0 ;;
"--version "*) echo "Python ${VERSION:-3.11.9}" ;;
"-m venv") echo "venv $3" >> "$CALLS"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo package > "$3/package" ;;
"-m pip")
    [ "$3" != --version ] || exit 0
    shift 2
    echo "pip $*" >> "$CALLS"
    [ -z "${KILLED:-}" ] || kill -9 "$PPID" ;;
esac
"""


class Project:
    """A project with the script, a ``pyproject.toml`` and a fake Python."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / "my venv"
        self.log = root / "calls"
        (root / "scripts").mkdir(parents=True)
        shutil.copy(SCRIPT, root / "scripts")
        self.python = root / "some python"
        self.python.write_text(STAND_IN, encoding="utf-8")
        self.python.chmod(0o755)
        self.requirements = root / "pyproject.toml"
        self.requirements.write_text("first", encoding="utf-8")

    def set_up(self, extra: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHON": str(self.python),
            "CALLS": str(self.log),
            "TORCH": "",
            "TORCH_INDEX_URL": "",
            "CONSTRAINTS": "",
        }
        return subprocess.run(
            ["sh", str(self.root / "scripts/environment.sh"), str(self.venv), extra],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """The calls since the last time."""
        done = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return done

    @property
    def all_steps(self) -> list[str]:
        return [f"venv {self.venv}", "pip install torch torchvision", "pip install --editable ."]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a project")


def test_a_missing_environment_is_created(project: Project) -> None:
    assert project.set_up().returncode == 0
    assert project.calls() == project.all_steps


def test_an_up_to_date_environment_is_left_alone(project: Project) -> None:
    project.set_up()
    project.calls()
    assert project.set_up().returncode == 0
    assert project.calls() == []


def test_nothing_is_printed_to_standard_output(project: Project) -> None:
    assert project.set_up().stdout == ""


def test_changed_requirements_update_the_environment_without_recreating_it(project: Project) -> None:
    project.set_up()
    project.calls()
    project.requirements.write_text("second", encoding="utf-8")
    project.set_up()
    assert project.calls() == project.all_steps[1:]


def test_the_development_extra_is_added_to_a_runtime_environment(project: Project) -> None:
    project.set_up()
    project.calls()
    project.set_up("dev")
    assert project.calls()[-1] == "pip install --editable .[dev]"


def test_an_environment_with_the_development_extra_also_serves_the_runtime(project: Project) -> None:
    project.set_up("dev")
    project.calls()
    project.set_up()
    assert project.calls() == []


def test_an_environment_with_ray_also_serves_development_and_runtime(project: Project) -> None:
    project.set_up("dev")
    project.calls()
    project.set_up("dev-ray")
    assert project.calls()[-1] == "pip install --editable .[dev-ray]"
    project.set_up("dev")
    project.set_up()
    assert project.calls() == []


def test_an_interrupted_environment_is_recreated(project: Project) -> None:
    assert project.set_up(KILLED="yes").returncode != 0
    half_installed = project.venv / "half a package"
    half_installed.write_text("", encoding="utf-8")
    project.calls()
    assert project.set_up().returncode == 0
    assert project.calls() == project.all_steps
    assert not half_installed.exists()


def test_an_environment_with_an_interrupted_update_is_recreated(project: Project) -> None:
    project.set_up()
    project.requirements.write_text("second", encoding="utf-8")
    project.set_up(KILLED="yes")
    project.calls()
    project.set_up()
    assert project.calls() == project.all_steps


def test_an_environment_of_another_checkout_is_switched_to_this_one(project: Project, tmp_path: Path) -> None:
    project.set_up()
    other = Project(tmp_path / "another")
    other.venv = project.venv
    other.set_up()
    assert other.calls()[-1] == "pip install --editable ."


def test_a_foreign_environment_is_used_and_never_emptied(project: Project) -> None:
    (project.venv / "bin").mkdir(parents=True)
    shutil.copy(project.python, project.venv / "bin/python")
    theirs = project.venv / "theirs"
    theirs.write_text("", encoding="utf-8")
    project.set_up(KILLED="yes")
    project.calls()
    assert project.set_up().returncode == 0
    assert project.calls() == project.all_steps[1:]
    assert theirs.exists()


def test_a_directory_with_other_files_is_rejected(project: Project) -> None:
    project.venv.mkdir()
    (project.venv / "thesis.txt").write_text("years of work", encoding="utf-8")
    result = project.set_up()
    assert result.returncode != 0
    assert "contains files" in result.stderr
    assert (project.venv / "thesis.txt").exists()


def test_a_python_that_is_too_old_is_named_with_its_version(project: Project) -> None:
    result = project.set_up(TOO_OLD="1", VERSION="3.9.18")
    assert result.returncode != 0
    assert "Python 3.9.18; MoLE-Flow needs 3.11 or newer" in result.stderr
    assert project.calls() == []


def test_a_python_that_does_not_exist_is_named(project: Project) -> None:
    result = project.set_up(PYTHON="no-such-python")
    assert result.returncode != 0
    assert "PYTHON=no-such-python cannot be run" in result.stderr


def test_torch_requirements_are_passed_to_pip_as_separate_arguments(project: Project) -> None:
    project.set_up(TORCH="torch>=2.6 torchvision", TORCH_INDEX_URL="https://packages.test/cpu")
    assert project.calls()[1] == "pip install --index-url https://packages.test/cpu torch>=2.6 torchvision"
    assert not (project.root / "=2.6").exists()


def test_pip_keeps_to_the_constraints_and_to_new_ones(project: Project, tmp_path: Path) -> None:
    constraints = tmp_path / "some constraints.txt"
    constraints.write_text("first", encoding="utf-8")
    project.set_up(CONSTRAINTS=str(constraints))
    wanted = [
        f"pip install --constraint {constraints} torch torchvision",
        f"pip install --constraint {constraints} --editable .",
    ]
    assert project.calls()[1:] == wanted
    project.set_up(CONSTRAINTS=str(constraints))
    assert project.calls() == []
    constraints.write_text("second", encoding="utf-8")
    project.set_up(CONSTRAINTS=str(constraints))
    assert project.calls() == wanted
