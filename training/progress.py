"""Progress of training: bars on a terminal, log lines elsewhere, a history file, and a file for other programs."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from moleflow.model.errors import ConfigurationError
from moleflow.model.files.outputs import reason, writing
from moleflow.model.files.regular_file import read_regular_file
from moleflow.training.progress_file import ProgressFile, Work

__all__ = ["Phase", "Reporter", "epoch_seconds"]


class Phase:
    """Progress of one phase of work, counted in images."""

    def __init__(
        self, progress: Progress | None = None, bar: TaskID | None = None, file: ProgressFile | None = None
    ) -> None:
        self._progress, self._bar, self._file = progress, bar, file
        self._start, self._done = time.perf_counter(), 0

    def advance(self, images: int, detail: str = "") -> None:
        """Add ``images`` to those done; ``detail`` is shown next to the rate."""
        self._done += images
        if self._file is not None:
            self._file.advance(images)
        if self._progress is not None and self._bar is not None:
            text = f"{self.rate:.1f} images/s {detail}"
            self._progress.update(self._bar, advance=images, detail=text)

    @property
    def rate(self) -> float:
        return self._done / max(time.perf_counter() - self._start, 1e-9)

    @property
    def shows_bar(self) -> bool:
        """Whether details given to ``advance`` are shown; if not, they need not be computed."""
        return self._progress is not None


class Reporter:
    """Writes to ``console`` (standard error by default), appends JSON lines to ``history``, and keeps ``progress``."""

    def __init__(
        self, history: Path | None = None, console: Console | None = None, progress: ProgressFile | None = None
    ) -> None:
        self.console = console or Console(file=sys.stderr)
        self.history, self.progress = history, progress
        self._warned: set[str] = set()

    def with_history(self, history: Path) -> Self:
        """A reporter on the same console with another history; each warning is shown once by both together."""
        other = type(self)(history, self.console, self.progress)
        other._warned = self._warned
        return other

    def plan(self, product: str, **images: int) -> None:
        """Tell the file of progress how many ``images`` of each kind of work (``Work``) learning ``product`` takes."""
        if self.progress is not None:
            self.progress.plan(product, images)

    @contextmanager
    def phase(self, title: str, total: int, done: int = 0, *, work: Work | None = None) -> Iterator[Phase]:
        """A progress bar over ``total`` images, ``done`` of them already; no output if this is not a terminal.

        ``work`` is what is done to them, for the file of progress.
        """
        file = None if work is None else self.progress
        if file is not None and work is not None:
            file.begin(title, work, total, done)
        if not self.console.is_terminal:
            yield Phase(file=file)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
        )
        # If standard output is not a terminal, rich must not redirect it to the bar's console.
        own = sys.stdout is not None and sys.stdout.isatty()
        with Progress(*columns, console=self.console, transient=True, redirect_stdout=own) as progress:
            bar = progress.add_task(escape(title), total=total, completed=done, detail="")
            yield Phase(progress, bar, file)

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line that starts with ``warning:``, once per text."""
        if text not in self._warned:
            self._warned.add(text)
            self.line(f"warning: {text}")

    def record(self, event: str, **values: object) -> None:
        """Append the time, ``event`` and ``values`` to the history; ``ConfigurationError`` if that fails."""
        if self.progress is not None and event == "epoch":
            self.progress.epoch(values)
        if self.history is None:
            return
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **values}
        with writing("the history of training", self.history), self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def epoch_seconds(history: Path) -> float:
    """Total seconds of all epochs, each counted once even if training was resumed; without embedding and saving."""
    seconds: dict[tuple[str, int], float] = {}
    try:
        lines = read_regular_file(history).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"the history {str(history)!r} cannot be read ({reason(error)}), so the training time is unknown; remove "
            "its folder to train the row again."
        ) from error
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["event"] == "epoch":
                seconds[entry["name"], entry["epoch"]] = float(entry["seconds"])
        except (ValueError, KeyError, TypeError):
            continue  # a line truncated by a kill
    return round(sum(seconds.values()), 3)
