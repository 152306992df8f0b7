"""A real ``moleflow serve`` in a process of its own."""

import re
import subprocess
import tempfile
import time
from typing import Self

from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.process_tree import usage
from benchmarks.shared.subprocesses import environment, module_command

__all__ = ["RunningService"]

PATIENCE_SECONDS = 300
"""Time for loading the model on a busy machine."""

OPTIONS = ("--unknown-limit", 0, "--lame-duck-seconds", 0)
"""No image refused, and no waiting for balancers at the end."""

_URL = re.compile(r"http://\S+")


class RunningService:
    """Starts on entry, on a free port unless one is given; stops on exit.

    ``BenchmarkError`` when the service does not start.
    ``arguments`` are those of ``moleflow serve``, the checkpoint first. No image is refused as an unknown product, so
    every image takes the whole path.
    """

    def __init__(self, *arguments: object, port: int = 0) -> None:
        self.command = module_command("moleflow", "serve", *arguments, "--port", port, *OPTIONS)
        self.url = ""

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self.command, env=environment({"PYTHONUNBUFFERED": "1"}), stdout=self._log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := [line for line in self.output().splitlines() if line.startswith("Serving ")]):
            if self._process.poll() is not None or time.monotonic() > deadline:
                output = self.output().strip()
                self.__exit__()
                raise BenchmarkError(f"the service did not start: {output}")
            time.sleep(0.1)
        self.url = _URL.findall(found[0])[-1]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, unless it has ended already."""
        if self._log.closed:
            return
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._log.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Memory that the process holds now (Linux)."""
        found = usage(self.pid)
        if found is None:
            raise BenchmarkError("the service ended while its memory was watched; see its log.")
        return found.resident

    def output(self) -> str:
        """What the service has written so far."""
        self._log.seek(0)
        return self._log.read()
