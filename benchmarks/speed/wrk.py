"""The load generator wrk, from the distribution's packages, and what it measured.

Of the generators that can send several images, wrk takes the least CPU, which matters because it shares the
processors with the service. ``load.lua`` gives every thread one connection, so that each latency is that of one
request, uncorrected. Where wrk is not installed, ``plain_load.py`` replaces it.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.subprocesses import environment, module_command

__all__ = ["Load", "drive", "find_wrk", "generator"]

SCRIPT = Path(__file__).with_name("load.lua")
REPLACEMENT = module_command("benchmarks.speed.plain_load")

TIMEOUT_SECONDS = 60
"""For one answer; a later one counts as an error."""

FIELDS = ("ended", "latency", "status", "bytes", "decode", "queue", "inference", "encode")
"""What ``load.lua`` prints of each response."""


@dataclass(frozen=True, slots=True)
class Load:
    """The responses of one run in the order of their ends: a column for each of ``FIELDS``.

    ``ended`` is in seconds, all other times are in milliseconds.
    """

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["ended"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def per_second(self) -> float:
        """Responses per second, counted from the end of the first one."""
        ended = self["ended"]
        if len(ended) < 2:
            raise BenchmarkError("there was only one response; measure for longer (--seconds).")
        return (len(ended) - 1) / float(ended[-1] - ended[0])


def find_wrk(given: str | None = None) -> list[str]:
    """The first words of the command: wrk, or its replacement. ``BenchmarkError`` when ``given`` does not exist."""
    found = shutil.which(given or "wrk")
    if found is None and given:
        raise BenchmarkError(f"there is no program {given!r}; install wrk (Debian, Ubuntu: apt install wrk).")
    return [found] if found else list(REPLACEMENT)


def generator(program: Sequence[str]) -> str:
    """What made the load, for the head of a table."""
    return "wrk" if len(program) == 1 else "plain_load.py, since wrk is not installed"


def drive(program: Sequence[str], url: str, path: str, images: Sequence[Path], concurrency: int, seconds: int) -> Load:
    """Send the image files in turn over ``concurrency`` connections for ``seconds``.

    ``BenchmarkError`` when the generator fails or an answer's status is not 200.
    """
    command = [
        *program,
        f"-t{concurrency}",
        f"-c{concurrency}",
        f"-d{seconds}s",
        f"--timeout={TIMEOUT_SECONDS}s",
        f"-s{SCRIPT}",
        url,
    ]
    variables = {"LOAD_IMAGES": "\n".join(str(image.resolve()) for image in images), "LOAD_PATH": path}
    done = subprocess.run(command, env=environment(variables), capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(
            f"the load generator ended with status {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Read what ``load.lua`` printed below wrk's own report."""
    rows = [line.split() for line in output.splitlines()]
    values = np.array([row for row in rows if len(row) == len(FIELDS) and row[0].isdecimal()], dtype=np.float64)
    if not len(values):
        raise BenchmarkError(f"the load generator got no answer: {output.strip()}")
    values = values[values[:, 0].argsort()]
    columns = dict(zip(FIELDS, values.T, strict=True))
    bad = columns["status"] != 200
    if bad.any():
        raise BenchmarkError(
            f"{bad.sum()} of {len(values)} answers have another status than 200: {columns['status'][bad][0]:.0f}."
        )
    columns["ended"] = columns["ended"] / 1e6
    columns["latency"] = columns["latency"] / 1e3
    return Load(columns)
