"""Timing in other processes: a worker builds subjects on request and answers how long batches of them took.

Two virtual environments cannot share a process, so each side has a worker; the parent lets one of them work at a
time. Requests and answers are JSON, one per line, over the worker's stdin and stdout::

    {"do": "hello"}                                              {"ok": true, "torch": "…", "threads": 2, …}
    {"do": "prepare", "subject": "stfpm"}                        {"ok": true, "precision": "fp32"}
    {"do": "time", "subject": "stfpm", "batch": 8, "calls": 5}   {"ok": true, "ms": [970.1, …]}

``ok`` is false and ``error`` gives the reason where a subject cannot be built or run; the worker goes on. It ends when
its stdin does.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.subprocesses import environment

__all__ = ["Subject", "SubjectError", "Worker", "WorkerError", "serve"]

WARM_UP_CALLS = 1
"""Untimed calls at the start of every turn: the other side has filled the caches meanwhile."""

_STDERR_SHOWN = 2000
"""Characters of a dead worker's stderr that the error quotes."""


class WorkerError(BenchmarkError):
    """A worker has ended or broke the protocol; the message holds the end of its stderr."""


class SubjectError(Exception):
    """One subject cannot be built or run; the worker goes on."""


class Subject(Protocol):
    """Something that is timed; building it is not. ``facts`` describe it in the results."""

    facts: dict[str, Any]

    def call(self, batch: int) -> Callable[[], Any]:
        """What is timed: one pass over ``batch`` images in memory."""


def serve(builders: Mapping[str, Callable[[], Subject]], hello: Mapping[str, Any]) -> None:
    """The worker's side: answer requests until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    built: dict[str, Subject] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"ok": True} | _answer(request, builders, built, hello)
        except Exception as error:  # third-party code may raise anything
            answer = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(
    request: Mapping[str, Any],
    builders: Mapping[str, Callable[[], Subject]],
    built: dict[str, Subject],
    hello: Mapping[str, Any],
) -> dict[str, Any]:
    if request["do"] == "hello":
        return {"subjects": list(builders)} | dict(hello)
    name = request["subject"]
    if name not in built:
        built[name] = builders[name]()
    if request["do"] == "prepare":
        return built[name].facts
    call = built[name].call(request["batch"])
    for _ in range(WARM_UP_CALLS):
        call()
    times = []
    gc.disable()  # garbage of an earlier subject would count for this one
    try:
        for _ in range(request["calls"]):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
    finally:
        gc.enable()
    return {"ms": times}


class Worker:
    """The parent's side of one worker process. Every method raises ``WorkerError`` when the process has ended.

    Args:
        command: the interpreter, and the worker's module or script.
        variables: environment variables to change.
    """

    def __init__(self, command: Sequence[str | Path], variables: Mapping[str, str]) -> None:
        self.command = [str(part) for part in command]
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (close() closes it)
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                env=environment(variables),
            )
        except OSError as error:
            self._stderr.close()
            raise WorkerError(f"{self.command[0]} cannot be started ({error}); name another python.") from error

    def hello(self) -> dict[str, Any]:
        """The worker's versions, threads and subjects."""
        return self._ask({"do": "hello"})

    def prepare(self, subject: str) -> dict[str, Any]:
        """Build a subject and return its facts. ``SubjectError`` when that fails."""
        return self._ask({"do": "prepare", "subject": subject})

    def time(self, subject: str, batch: int, calls: int) -> list[float]:
        """Milliseconds of each of ``calls`` passes over a batch after a warm-up. ``SubjectError`` when one fails."""
        times: list[float] = self._ask({"do": "time", "subject": subject, "batch": batch, "calls": calls})["ms"]
        return times

    def close(self) -> None:
        """Close the worker's stdin, which ends it, and wait."""
        stdin, stdout = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        self._process.wait()
        stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.command} ended during {dict(request)}: {self._last_words()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise WorkerError(f"{self.command} answered {line!r}, which is not JSON") from error
        if not answer.pop("ok"):
            raise SubjectError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        return f"exit status {code}; {self._stderr.read()[-_STDERR_SHOWN:].strip() or 'nothing on stderr'}"
