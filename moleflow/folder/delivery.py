"""Sending rows to sinks in a thread, so that a slow receiver does not stop the model at once.

A row is appended to the output after it was sent, or written beside the output as undeliverable. So a run that is
killed predicts and sends again what its receivers may not have got: every row arrives at least once.
"""

import contextlib
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

from moleflow.folder.output import Output, Row
from moleflow.folder.rows import as_json
from moleflow.folder.sinks import Sink, SinkError
from moleflow.model.files.outputs import writing
from moleflow.retrying import backoff_seconds

__all__ = ["Delivery"]

_QUEUED_ROWS = 256
"""Most rows that wait for their receivers; then the model waits too."""

_ATTEMPTS = 6
"""For one row, with 8 to 16 seconds of waiting between them."""

_REST_SECONDS = 30.0
"""How long a receiver that failed so often gets no row; then one attempt decides."""


class Delivery:
    """Sends rows to ``sinks`` and appends them to ``output``, whose ``append`` it replaces."""

    def __init__(self, sinks: Sequence[Sink], output: Output, path: Path) -> None:
        self._sinks, self._output, self._path = sinks, output, path
        self._rows: queue.Queue[Row | None] = queue.Queue(_QUEUED_ROWS)
        self._resting: dict[str, float] = {}  # until when, by the clock of `monotonic`
        self._discarding = threading.Event()
        self._error: BaseException | None = None
        self.undelivered = 0
        """Rows that a sink has not got."""

    @contextlib.contextmanager
    def running(self) -> Iterator["Delivery"]:
        """Runs the thread. The end of the block waits for all rows; an error in the block discards those that wait."""
        thread = threading.Thread(target=self._run, name="deliver")
        thread.start()
        try:
            yield self
        except BaseException:
            self._discarding.set()
            raise
        finally:
            self._rows.put(None)
            thread.join()
            for sink in self._sinks:
                sink.close()
        self._check()

    def put(self, row: Row) -> None:
        """Hand over a row. Raises what writing the rows before raised."""
        self._check()
        self._rows.put(row)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (row := self._rows.get()) is not None:
            try:
                for sink in self._sinks:
                    self._deliver(sink, as_json(row))
                if not self._discarding.is_set():
                    self._output.append([row])
            except BaseException as error:  # raised in the other thread
                self._error = error
                self._discarding.set()

    def _deliver(self, sink: Sink, row: bytes) -> None:
        rest = self._resting.get(sink.name)
        if rest is not None and monotonic() < rest:
            self._keep(sink, row)
            return
        attempts = _ATTEMPTS if rest is None else 1
        for attempt in range(attempts):
            if self._discarding.is_set():
                return
            try:
                sink.send(row)
            except SinkError as error:
                if error.is_final or attempt == attempts - 1:
                    self._give_up(sink, row, error)
                    return
                self._discarding.wait(max(error.retry_after_seconds, backoff_seconds(attempt)))
            else:
                self._resting.pop(sink.name, None)
                return

    def _give_up(self, sink: Sink, row: bytes, error: SinkError) -> None:
        if sink.name not in self._resting:
            print(f"warning: {sink.name} fails: {error}; rows are kept in {self._kept(sink)}", file=sys.stderr)
        if not error.is_final:
            self._resting[sink.name] = monotonic() + max(error.retry_after_seconds, _REST_SECONDS)
        self._keep(sink, row)

    def _keep(self, sink: Sink, row: bytes) -> None:
        """Write a row that cannot be delivered beside the output."""
        self.undelivered += 1
        path = self._kept(sink)
        with writing("the undelivered rows", path), path.open("ab") as file:
            file.write(row)

    def _kept(self, sink: Sink) -> Path:
        return self._path.with_name(f"{self._path.name}.{sink.name}-failed.jsonl")
