"""``python -m benchmarks NAME`` is the one way in, and every name starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES, main
from benchmarks.shared.subprocesses import ROOT, environment


@pytest.mark.parametrize("name", NAMES)
def test_every_name_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m benchmarks {name} " in capsys.readouterr().out


def test_without_a_name_all_are_listed_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(NAMES)


def test_an_unknown_name_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    assert "no 'speed'" in capsys.readouterr().err


def test_no_benchmark_edits_the_path_of_imports() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "sys.path" not in path.read_text(encoding="utf-8"), path


def test_the_entry_sets_the_variables_for_threads_before_pytorch_and_numpy_read_them() -> None:
    code = "import sys, benchmarks.__main__; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
