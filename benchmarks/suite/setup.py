"""What the sections of ``make bench`` run on: processes that end with it, inputs, and the baselines' environment."""

import contextlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.subprocesses import ROOT, environment, module_command

__all__ = ["last_lines", "prepare_inputs", "run_logged", "set_up_baselines"]

LIMIT_SECONDS = 1800
"""A section that takes longer is killed and has failed."""

REASON_LINES = 3
"""Last lines of a failed section's output that the results quote."""


def run_logged(words: Sequence[str], log: Path, temporary: Path, limit: float | None = None) -> int:
    """Run a command; its output goes to ``log`` and its temporary files to ``temporary``, which is removed.

    The command leads a process group of its own, which is killed with it and with us. ``subprocess.TimeoutExpired``
    when it takes more than ``limit`` seconds, by default ``LIMIT_SECONDS``.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment({"TMPDIR": str(temporary)}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        try:
            return process.wait(limit or LIMIT_SECONDS)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            shutil.rmtree(temporary, ignore_errors=True)


def last_lines(log: Path, name: str = "") -> str:
    """The end of a command's output in one line; or its line ``NAME: error``, if it wrote one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(f"{name}: ")]
    if name and own:
        return own[-1]
    return " / ".join(lines[-REASON_LINES:]) or "it printed nothing"


def prepare_inputs(folder: Path, code: str) -> None:
    """Make the images and the checkpoint that all sections use, once for each state of the code."""
    made = folder / "inputs.txt"
    with contextlib.suppress(OSError):
        if made.read_text(encoding="utf-8") == code:
            return
    status = run_logged(module_command("benchmarks.suite.inputs", folder), folder / "inputs.log", folder / "temporary")
    if status:
        raise BenchmarkError(f"images and checkpoint could not be made: {last_lines(folder / 'inputs.log')}")
    made.write_text(code, encoding="utf-8")


def set_up_baselines(folder: Path, log: Path) -> str:
    """Make the baselines' environment, or bring it up to date, unless it has every release that is needed.

    Returns the reason why it cannot be used, or an empty text.
    """
    torch = importlib.metadata.version("torch").split("+")[0]
    lines = (ROOT / "benchmarks/baselines/requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [f"torch=={torch}", *(line for line in lines if "==" in line and not line.startswith("#"))]
    if has_packages(folder / "bin/python", wanted):
        return ""
    print(f"all: setting up {folder} for the baselines: several GB; progress is in {log}", flush=True)
    vision = importlib.metadata.version("torchvision").split("+")[0]
    variables = os.environ | {"TORCH": f"torch=={torch} torchvision=={vision}", "PYTHON": sys.executable}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        words = ["sh", str(ROOT / "benchmarks/baselines/setup.sh"), str(folder)]
        status = subprocess.run(words, env=variables, stdout=output, stderr=output).returncode
    return f"the baselines' environment could not be set up: {last_lines(log)}" if status else ""


def has_packages(python: Path, wanted: Sequence[str]) -> bool:
    """Whether an interpreter's environment holds exactly these releases."""
    check = (
        "import sys; from importlib.metadata import version\n"
        "for each in sys.argv[1:]:\n"
        "    name, release = each.split('==')\n"
        "    assert version(name).split('+')[0] == release"
    )
    if not python.exists():
        return False
    return subprocess.run([python, "-c", check, *wanted], stderr=subprocess.DEVNULL).returncode == 0
