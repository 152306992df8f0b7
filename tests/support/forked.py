"""Real processes for tests that kill, stop or watch them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

__all__ = ["ENVIRONMENT", "ROOT", "Finished", "Process", "Processes", "moleflow_code"]

ROOT = Path(__file__).resolve().parents[2]

ENVIRONMENT = {"MOLEFLOW_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
"""For every process: one thread, for reproducible results, and no network."""

_PATIENCE_SECONDS = 240
"""After this long a process counts as hung; generous, since the machine may be busy."""


def moleflow_code(*arguments: object, before: str = "") -> str:
    """Code equivalent to ``python -m moleflow ARGUMENTS``, preceded by the code ``before``."""
    argv = ["moleflow", *map(str, arguments)]
    return f"{before}\nimport runpy, sys\nsys.argv = {argv!r}\nrunpy.run_module('moleflow', run_name='__main__')\n"


@dataclass(frozen=True)
class Finished:
    """A finished process: exit status (negative: the signal that killed it) and output."""

    status: int
    stdout: str
    stderr: str


class Process:
    """One forked process."""

    def __init__(self, server: "Processes", code: str) -> None:
        self._server = server
        self._files = {name: server.folder / f"{len(list(server.folder.iterdir()))}.{name}" for name in ("out", "err")}
        self.pid = server.ask(
            {
                "code": code,
                "stdout": str(self._files["out"]),
                "stderr": str(self._files["err"]),
                "environment": ENVIRONMENT,
            }
        )
        self._files["out"].touch()
        self._status: int | None = None

    def running(self) -> bool:
        """Whether it is still running."""
        if self._status is None:
            self._status = self._server.ask({"poll": self.pid})
        return self._status is None

    def wait_for(self, condition: Callable[[], bool], seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait until ``condition`` holds or the process has ended."""
        deadline = time.monotonic() + seconds
        while self.running() and not condition():
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError("the process hangs")
            time.sleep(0.005)

    def line(self, number: int) -> str:
        """Line ``number`` of its standard output, counted from 0, once it is there."""
        out = self._files["out"]
        self.wait_for(lambda: out.read_text().count("\n") > number)
        lines = out.read_text().splitlines()
        assert number < len(lines), f"it ended before: {self._files['err'].read_text()}"
        return lines[number]

    def output(self) -> str:
        """Its standard output so far."""
        return self._files["out"].read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it is still running."""
        if self.running():
            os.kill(self.pid, number)

    def finish(self, seconds: float = _PATIENCE_SECONDS) -> Finished:
        """Wait for the end."""
        self.wait_for(lambda: False, seconds)
        assert self._status is not None
        return Finished(self._status, self._files["out"].read_text(), self._files["err"].read_text())


class Processes:
    """Starts processes by forking a server that has everything imported."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self._folder.cleanup()

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request to the server and return its response."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, code: str) -> Process:
        """Start ``code`` in a new process."""
        return Process(self, code)

    def run(self, code: str) -> Finished:
        """Run ``code`` in a new process and wait for it."""
        return self.start(code).finish()
