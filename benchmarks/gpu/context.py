"""What a stage is given: options, folders, the time that is left, and a place for its results."""

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import STOPPED, Records

__all__ = ["Context", "NotMeasuredError", "OutOfTimeError"]

LONGEST_REASON, MOST_WARNINGS = 300, 20


class OutOfTimeError(Exception):
    """The time is up; what was measured is kept."""


class NotMeasuredError(Exception):
    """A figure cannot be measured on this machine; the message says why."""


class _Kept(logging.Handler):
    """Keeps the first warnings, each once, as text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())[:LONGEST_REASON]
        if text not in self.texts and len(self.texts) < MOST_WARNINGS:
            self.texts.append(text)


class Context:
    """One run of a stage. ``result`` is its result so far, ``earlier`` that of an earlier run that was stopped."""

    def __init__(self, name: str, options: argparse.Namespace, earlier: Mapping[str, Any] | None = None) -> None:
        self.name, self.options, self.earlier = name, options, dict(earlier or {})
        self.records, self.result = Records(options.output), dict[str, Any]()
        self.stopped = False
        self._kept = _Kept()
        self._started = time.monotonic()

    @property
    def reduced(self) -> bool:
        """Whether everything is tiny."""
        return bool(self.options.reduced)

    @property
    def work(self) -> Path:
        """A folder for large files, kept for the next run."""
        folder: Path = self.options.work
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def warnings(self) -> list[str]:
        """What MoLE-Flow has warned of: for example that it goes on without a faster way."""
        return self._kept.texts

    def listen(self) -> None:
        """Keep warnings from now on; they are printed too."""
        for handler in (self._kept, logging.StreamHandler()):
            logging.getLogger("moleflow").addHandler(handler)

    @property
    def seconds(self) -> float:
        """How long the stage has run."""
        return time.monotonic() - self._started

    def left(self) -> float:
        """Seconds until the stage should end."""
        return float(self.options.deadline - time.time())

    def keep(self) -> None:
        """Write the result so far."""
        self.write(STOPPED, "ended early")

    def write(self, state: str, reason: str = "") -> None:
        """Write the record."""
        self.records.write(self.name, state, self.result, reason, self.seconds, self.warnings)

    def attempt(self, into: dict[str, Any], key: str, call: Callable[[], Any]) -> None:
        """Store what ``call`` returns, or why it failed, so that the other figures are still measured."""
        if self.left() <= 0:
            self.stopped = True
            into.setdefault(key, {"not_measured": "no time was left"})
            return
        print(f"{self.name}: {key} …", file=sys.stderr, flush=True)
        try:
            into[key] = call()
        except NotMeasuredError as reason:
            into[key] = {"not_measured": str(reason)}
        except Exception as error:  # whatever a GPU's libraries raise
            traceback.print_exc()
            into[key] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]}
        self.keep()
