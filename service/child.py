"""One of several processes of a service, started by ``moleflow.service.supervisor``, which tells it what to do.

It gets a ``Start``, pickled, on standard input. When that ends without another word, the supervisor is gone, and so
goes this process. It writes a line of JSON, ``Said``, to a pipe when it is ready, or why it cannot be.
"""

import json
import os
import pickle
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from moleflow.service.settings import Settings

__all__ = ["Said", "Start", "main"]


@dataclass(frozen=True, slots=True)
class Start:
    """What a process is to serve. ``listeners`` and ``report`` are file descriptors that it has inherited."""

    settings: "Settings"
    folder: Path
    index: int
    listeners: tuple[int, ...]
    report: int
    accept_when_ready: bool


class Said(TypedDict, total=False):
    """What a process says: what it serves and on which device, or the error's class and message."""

    products: list[str]
    device: str
    error: str
    message: str


def main() -> None:
    """Serve until told to stop, or until the supervisor is gone."""
    from moleflow.model.runtime.memory import keep_freed_memory
    from moleflow.model.runtime.threads import prepare_threads

    prepare_threads()  # before NumPy is imported
    keep_freed_memory()
    _serve(pickle.load(sys.stdin.buffer))


def _serve(start: Start) -> None:
    from moleflow.model.errors import MoLEFlowError, describe
    from moleflow.model.exported.folder import is_exported
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.service.engine.predictor import Predictor
    from moleflow.service.logs import configure_logs
    from moleflow.service.server import serve_on
    from moleflow.service.siblings.link import Link

    configure_logs(start.settings.log_format, start.settings.log_level)
    threading.Thread(target=_stop_without_supervisor, name="supervisor", daemon=True).start()
    if not is_exported(start.settings.checkpoint):
        configure_threads()

    def say(said: Said) -> None:
        os.write(start.report, json.dumps(said).encode() + b"\n")

    def ready(predictor: Predictor) -> None:
        say({"products": [each.name for each in predictor.tasks], "device": str(predictor.device)})

    try:
        serve_on(
            [socket.socket(fileno=each) for each in start.listeners],
            start.settings,
            on_ready=ready,
            link=Link(start.folder, start.index, start.settings.processes),
            accept_when_ready=start.accept_when_ready,
        )
    except Exception as error:
        is_known = isinstance(error, MoLEFlowError | OSError)
        say({"error": type(error).__name__, "message": str(error) if is_known else describe(error)})
        if not is_known:
            raise
        sys.exit(1)


def _stop_without_supervisor() -> None:
    """Stop as if told to, once standard input ends."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
