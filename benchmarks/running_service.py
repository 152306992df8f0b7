"""A real ``moleflow serve`` in a process of its own, for measurements."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

__all__ = ["RunningService", "ServiceError"]

ROOT = Path(__file__).resolve().parents[1]

PATIENCE_SECONDS = 300
"""Time for loading the model, on a busy machine."""

_URL = re.compile(r"http://\S+")


class ServiceError(Exception):
    """The service did not start; the message is what it said."""


class RunningService:
    """Starts on entry, on a port that the system chooses; stops on exit.

    ``arguments`` are those of ``moleflow serve``, the checkpoint first. Nothing is refused as an unknown product, so
    that every image goes the whole way.
    """

    def __init__(self, *arguments: object) -> None:
        self.command = [
            sys.executable, "-m", "moleflow", "serve", *map(str, arguments), "--port", "0", "--unknown-limit", "0",
        ]  # fmt: skip
        self.url = ""

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self.command, env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := [line for line in self._said().splitlines() if line.startswith("Serving ")]):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._said().strip()
                self.__exit__()
                raise ServiceError(f"the service did not start: {said}")
            time.sleep(0.1)
        self.url = _URL.findall(found[0])[-1]
        return self

    def __exit__(self, *_: object) -> None:
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
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time that the process has taken so far (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()
