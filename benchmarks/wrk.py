"""The load generator: wrk, from the distribution's packages, and what it measured.

wrk costs the least CPU of the generators that can send several images, which matters where it shares the processors
with what it measures: it is C, with one system call a read. ``load.lua`` gives every thread one connection, so that
each latency is that of one request, uncorrected. Where it is not installed, ``plain_load.py`` stands in for it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Load", "LoadError", "drive", "find_wrk", "generator"]

SCRIPT = Path(__file__).with_name("load.lua")
STAND_IN = Path(__file__).with_name("plain_load.py")

TIMEOUT_SECONDS = 60
"""For one answer; later ones count as errors."""

FIELDS = ("ended", "latency", "status", "bytes", "decode", "queue", "inference", "encode")
"""What ``load.lua`` says of each response."""


class LoadError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """The responses of one run, by the time they ended: a column for each of ``FIELDS``; ``ended`` in seconds, the
    rest of the times in milliseconds."""

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["ended"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def per_second(self) -> float:
        """Responses a second, from the first one on: the model has been busy since before it."""
        ended = self["ended"]
        if len(ended) < 2:
            raise LoadError("there was only one response; measure for longer (--seconds).")
        return (len(ended) - 1) / float(ended[-1] - ended[0])


def find_wrk(given: str | None = None) -> list[str]:
    """The program as the head of a command: wrk, or what stands in for it. Raises ``LoadError`` when it was named, and
    is not there."""
    found = shutil.which(given or "wrk")
    if found is None and given:
        raise LoadError(f"there is no program {given!r}; install wrk (Debian, Ubuntu: apt install wrk).")
    return [found] if found else [sys.executable, str(STAND_IN)]


def generator(program: Sequence[str]) -> str:
    """What made the load, in words."""
    return "wrk" if len(program) == 1 else f"{STAND_IN.name}, since wrk is not installed"


def drive(program: Sequence[str], url: str, path: str, images: Sequence[Path], concurrency: int, seconds: int) -> Load:
    """Send the images' files in turn over ``concurrency`` connections for ``seconds``.

    Raises ``LoadError`` when wrk fails or an answer is none of status 200.
    """
    command = [
        *program, f"-t{concurrency}", f"-c{concurrency}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s",
        f"-s{SCRIPT}", url,
    ]  # fmt: skip
    variables = {"LOAD_IMAGES": "\n".join(str(image.resolve()) for image in images), "LOAD_PATH": path}
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise LoadError(
            f"the load generator ended with status {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Read what ``load.lua`` printed below wrk's own report."""
    rows = [line.split() for line in output.splitlines()]
    values = np.array([row for row in rows if len(row) == len(FIELDS) and row[0].isdecimal()], dtype=np.float64)
    if not len(values):
        raise LoadError(f"the load generator got no answer: {output.strip()}")
    values = values[values[:, 0].argsort()]
    columns = dict(zip(FIELDS, values.T, strict=True))
    bad = columns["status"] != 200
    if bad.any():
        raise LoadError(f"{bad.sum()} of {len(values)} answers have a status as {columns['status'][bad][0]:.0f}.")
    columns["ended"] = columns["ended"] / 1e6
    columns["latency"] = columns["latency"] / 1e3
    return Load(columns)
