"""The process of a job: `moleflow train` at the lowest priority, and what its end means."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import moleflow
from moleflow.model.errors import one_line
from moleflow.service.responses.teaching import Job
from moleflow.service.settings import Settings

__all__ = ["TrainingProcess", "train_command"]

_STOP_SECONDS = 5.0
"""Between SIGTERM, upon which training ends at once, and SIGKILL."""

_TAIL_BYTES = 64 * 1024
"""Of the output that is searched for the error and for warnings."""

_MOST_WARNINGS = 20


def train_command(settings: Settings, job: Job, folder: Path, *, replace: bool) -> list[str]:
    """The command that learns a job's product into the service's checkpoint; ``folder`` is the job's."""
    command = [sys.executable, "-m", "moleflow", "train", str(folder / "data"), "--task", job.task]
    command += ["--checkpoint", str(settings.checkpoint), "--device", settings.device]
    command += ["--max-pixels", str(settings.max_pixels), "--progress", str(folder / "progress.json")]
    command += ["--plugin", settings.plugin] if settings.plugin else []
    command += ["--epochs", str(job.epochs)] if job.epochs else []
    return [*command, "--replace"] if replace else command


class TrainingProcess:
    """A running command whose output goes into ``folder``. Raises ``OSError`` if it cannot be started."""

    def __init__(self, command: list[str], folder: Path, threads: int) -> None:
        self._folder = folder
        launch = [sys.executable, "-m", "moleflow.service.teaching.launch", str(os.getpid())]
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*launch, *command],
                env=_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for the service, which ends it. In another session niceness would not count towards the
                # service (autogroups, sched(7)).
                process_group=0,
            )

    @property
    def _output(self) -> Path:
        return self._folder / "output.txt"

    @property
    def status(self) -> int | None:
        """The exit status, negative if a signal ended it; ``None`` while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it. Blocks."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def said(self) -> tuple[str, list[str]]:
        """The error that it ended with, in its own words, and its warnings."""
        try:
            with self._output.open("rb") as output:
                output.seek(max(0, self._output.stat().st_size - _TAIL_BYTES))
                lines = output.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"its output cannot be read ({error.strerror})", []
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        warnings = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
        last = errors or [line for line in lines if line.strip()][-1:] or ["it said nothing"]
        return last[-1], list(dict.fromkeys(one_line(each) for each in warnings))[:_MOST_WARNINGS]

    @staticmethod
    def is_killed(status: int) -> bool:
        """Whether a signal ended it, so that the images are hardly to blame."""
        return status < 0 or status == 128 + signal.SIGINT


def _environment(threads: int) -> dict[str, str]:
    """That of this process, with the path of this package and its number of threads."""
    root = str(Path(moleflow.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    count = str(threads)
    return {**os.environ, "PYTHONPATH": path, "MOLEFLOW_THREADS": count, "OMP_NUM_THREADS": count, "NO_COLOR": "1"}
