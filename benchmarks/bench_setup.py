"""What the sections of ``bench.py`` run on: processes that end with it, inputs, and the neighbours' environment."""

import contextlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "SetupError", "last_lines", "prepare_inputs", "run_logged", "set_up_peers"]

ROOT = Path(__file__).resolve().parents[1]

LIMIT_SECONDS = 1800
"""A section that takes longer is ended, and has failed."""

REASON_LINES = 3
"""The last lines that a failed section said, which the results quote."""


class SetupError(Exception):
    """A section cannot begin; the message says why and what to do."""


def run_logged(words: Sequence[str], log: Path, temporary: Path) -> int:
    """Run a command with its output in ``log`` and its temporary files in ``temporary``, which is removed.

    It is the head of a process group of its own, all of which ends with it or with us.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    variables = os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)}
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            words, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0
        )
        try:
            return process.wait(LIMIT_SECONDS)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            shutil.rmtree(temporary, ignore_errors=True)


def last_lines(log: Path, program: str = "") -> str:
    """The end of what a command said, in one line; if it named itself before an error, as ours do, that line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(f"{program}: ")]
    if program and own:
        return own[-1]
    return " / ".join(lines[-REASON_LINES:]) or "it said nothing"


def prepare_inputs(folder: Path, code: str) -> None:
    """Images and a checkpoint of random weights for all sections, made once by each state of the code."""
    made = folder / "inputs.txt"
    with contextlib.suppress(OSError):
        if made.read_text(encoding="utf-8") == code:
            return
    words = [sys.executable, "benchmarks/bench_inputs.py", str(folder)]
    status = run_logged(words, folder / "inputs.log", folder / "temporary")
    if status:
        raise SetupError(f"images and checkpoint could not be made: {last_lines(folder / 'inputs.log')}")
    made.write_text(code, encoding="utf-8")


def set_up_peers(folder: Path, log: Path) -> str:
    """Make the neighbours' environment, or bring it up to date, unless it has all that is needed.

    Returns why it cannot be used; nothing when it can.
    """
    torch = importlib.metadata.version("torch").split("+")[0]
    lines = (ROOT / "benchmarks/peers/requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [f"torch=={torch}", *(line for line in lines if "==" in line and not line.startswith("#"))]
    if has_packages(folder / "bin/python", wanted):
        return ""
    print(f"bench: sets up {folder} for the neighbours: several GB; {log} tells how far it is", flush=True)
    vision = importlib.metadata.version("torchvision").split("+")[0]
    variables = os.environ | {"TORCH": f"torch=={torch} torchvision=={vision}", "PYTHON": sys.executable}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as said:
        words = ["sh", str(ROOT / "benchmarks/peers/setup.sh"), str(folder)]
        status = subprocess.run(words, env=variables, stdout=said, stderr=said).returncode
    return f"the neighbours' environment could not be set up: {last_lines(log)}" if status else ""


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
