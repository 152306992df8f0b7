"""Several processes behind one port, each a service with a model of its own, and the one that watches them.

A process that ends unasked is started again, and gets connections once its model is loaded. Signals are passed on.
"""

import contextlib
import functools
import json
import logging
import math
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import moleflow
from moleflow.model.errors import ConfigurationError, MoLEFlowError
from moleflow.model.runtime.threads import available_processors
from moleflow.service.child import Said, Start
from moleflow.service.connections.hangup import has_terminal
from moleflow.service.environment import warn_about_unread_variables
from moleflow.service.listening import listening, url_of
from moleflow.service.logs import configure_logs
from moleflow.service.settings import Settings

__all__ = ["supervise"]

_TICK_SECONDS = 0.2
"""How often signals and restarts that are due are looked at."""

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0
"""Seconds before a process is started again; doubled each time that it ends early."""

_STABLE_SECONDS = 60.0
"""A process that has run so long ends early no more."""

_GRACE_SECONDS = 15.0
"""What stopping may take beyond the settings' times, before processes are killed."""

_STOPPED = (0, -signal.SIGTERM, -signal.SIGINT)
"""Exit statuses after a graceful stop; uvicorn raises the signal again at its end."""

_logger = logging.getLogger(__name__)


class _EndedError(MoLEFlowError):
    """A process of the service could not start."""


@dataclass(slots=True)
class _Child:
    """One process; ``said`` once it is ready."""

    index: int
    process: "subprocess.Popen[bytes] | None" = None
    report: int = -1
    said: Said | None = None
    started: float = 0.0
    delay: float = _FIRST_DELAY
    starts_at: float = math.inf
    heard: bytes = b""


@dataclass(slots=True)
class _Supervisor:
    settings: Settings
    listeners: list[socket.socket]
    folder: Path
    on_ready: Callable[[Said], None]
    children: list[_Child] = field(default_factory=list)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    signals: list[int] = field(default_factory=list)
    stops_by: float = math.inf
    were_ready: bool = False
    failure: Exception | None = None

    def run(self) -> None:
        self.children = [_Child(index) for index in range(self.settings.processes)]
        for child in self.children:
            self.start(child)
        while any(child.process is not None or child.starts_at < math.inf for child in self.children):
            for key, _ in self.selector.select(_TICK_SECONDS):
                self.hear(key.data)
            while self.signals:
                self.pass_on(self.signals.pop(0))
            now = time.monotonic()
            for child in self.children:
                if child.starts_at <= now:
                    self.start(child)
                elif child.process is not None and now >= self.stops_by:
                    child.process.kill()

    def start(self, child: _Child) -> None:
        reading, writing = os.pipe()
        share = max(1, math.ceil(self.settings.cpu_workers / self.settings.processes))
        start = Start(
            self.settings.model_copy(update={"cpu_workers": share}),
            self.folder,
            child.index,
            listeners=tuple(each.fileno() for each in self.listeners),
            report=writing,
            accept_when_ready=self.were_ready,
        )
        threads = max(1, available_processors() // self.settings.processes)
        process = subprocess.Popen(
            [sys.executable, "-m", "moleflow.service.child"],
            stdin=subprocess.PIPE,
            pass_fds=(*start.listeners, writing),
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
            env={"OMP_NUM_THREADS": str(threads)} | os.environ | {"PYTHONPATH": _import_path()},
        )
        os.close(writing)
        os.set_blocking(reading, False)
        child.process, child.report, child.said, child.heard = process, reading, None, b""
        child.started, child.starts_at = time.monotonic(), math.inf
        self.selector.register(reading, selectors.EVENT_READ, child)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which its pipe tells too
            process.stdin.write(pickle.dumps(start))
            process.stdin.flush()

    def hear(self, child: _Child) -> None:
        """Read what a process says, or notice that it has ended."""
        data = os.read(child.report, 2**16)
        child.heard += data
        if not data:
            self.bury(child)
        elif child.heard.endswith(b"\n"):
            child.said = json.loads(child.heard)
            child.heard = b""
            if "error" in child.said:
                if not self.were_ready:
                    self.fail(child.said)
            elif all(each.said is not None and "error" not in each.said for each in self.children):
                if not self.were_ready:
                    self.on_ready(child.said)
                self.were_ready = True

    def bury(self, child: _Child) -> None:
        """A process has ended: start it again later, unless the service stops or never was ready."""
        assert child.process is not None
        assert child.process.stdin is not None
        self.selector.unregister(child.report)
        os.close(child.report)
        with contextlib.suppress(OSError):
            child.process.stdin.close()
        status, child.process = child.process.wait(), None
        if self.stops_by < math.inf:
            if status not in _STOPPED and self.failure is None:
                self.failure = _EndedError(f"Process {child.index} of the service ended with status {status}.")
        elif not self.were_ready:
            self.fail({"message": f"Process {child.index} of the service ended with status {status} as it started."})
        else:
            now = time.monotonic()
            wait = _FIRST_DELAY if now - child.started > _STABLE_SECONDS else child.delay
            child.delay = min(2 * wait, _LONGEST_DELAY)
            child.starts_at = now + wait
            _logger.error("Process %d ended with status %d; it starts again in %g s.", child.index, status, wait)

    def fail(self, said: Said) -> None:
        """The service cannot start; the first reason counts."""
        if self.failure is None:
            kind = ConfigurationError if said.get("error") == ConfigurationError.__name__ else _EndedError
            self.failure = kind(said["message"])
        self.pass_on(signal.SIGINT)

    def pass_on(self, number: int) -> None:
        """Send a signal to all processes; those that stop the service begin its end."""
        if number != signal.SIGHUP:
            patience = self.settings.lame_duck_seconds if number == signal.SIGTERM else 0
            self.stops_by = min(
                self.stops_by, time.monotonic() + patience + self.settings.shutdown_timeout_seconds + _GRACE_SECONDS
            )
        for child in self.children:
            if number != signal.SIGHUP:
                child.starts_at = math.inf
            if child.process is not None:
                child.process.send_signal(number)


def supervise(settings: Settings) -> None:
    """Serve in ``settings.processes`` processes until told to stop; accepted requests are completed first.

    A line says so once all of them accept images. Raises ``ConfigurationError`` when the address cannot be bound or the
    processes say so, and another ``MoLEFlowError`` when one of them cannot start or had to be killed.
    """
    configure_logs(settings.log_format, settings.log_level)
    warn_about_unread_variables(os.environ, Settings.model_fields)
    with listening(settings) as listeners, tempfile.TemporaryDirectory(prefix="moleflow-") as folder:
        url = url_of(settings, listeners[0])
        supervisor = _Supervisor(settings, listeners, Path(folder), functools.partial(_report_ready, settings, url))
        with _handling(supervisor.signals):
            supervisor.run()
        if supervisor.failure is not None:
            raise supervisor.failure


@contextlib.contextmanager
def _handling(signals: list[int]) -> Iterator[None]:
    """Collect signals instead of ending; the hangup of a closed terminal is one to stop."""
    had_terminal = has_terminal()

    def collect(number: int, _: FrameType | None) -> None:
        is_closed = number == signal.SIGHUP and had_terminal and not has_terminal()
        signals.append(signal.SIGTERM if is_closed else number)

    before = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not ignored, as by nohup
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, collect)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _import_path() -> str:
    """``PYTHONPATH`` with which a process finds this package too, wherever it was imported from."""
    root = str(Path(moleflow.__file__).parents[1])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _report_ready(settings: Settings, url: str, said: Said) -> None:
    what = f"{settings.checkpoint.name} ({', '.join(said['products'])}) on {said['device']}"
    line = f"Serving {what} in {settings.processes} processes at {url}"
    if settings.log_format == "text":
        print(line, flush=True)
    else:
        _logger.info("%s", line)
