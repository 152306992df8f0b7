"""Taking new connections: never more than there is room for, and without a word for each that there is none for."""

import asyncio
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

from moleflow.model.errors import ConfigurationError
from moleflow.service.connections.registry import Connections

__all__ = ["Acceptor", "connection_limit"]

_MOST_CONNECTIONS = 1000
"""Unless set otherwise: far more than there are places, and each may hold some 300 kB of what it sent."""

_FEWEST_CONNECTIONS = 16
"""With fewer a service is of no use."""

_AT_ONCE = 4
"""Connections taken in one turn of the event loop. What is closed to make room is closed in the next."""

_SPARE_DESCRIPTORS = 64
"""Kept for other files than connections: pipes to processes, files that are read, and two turns of new connections."""

_DESCRIPTORS_PER_WORKER = 4
"""Of one worker that decodes: its pipes, and what it shares."""

_RETRY_SECONDS = 0.1
"""When no connection can be taken, the next try is after so long."""

_SILENCE_SECONDS = 60.0
"""What goes wrong here goes wrong thousands of times a second; the log has it once in so long."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_logger = logging.getLogger(__name__)


def connection_limit(wanted: int | None, workers: int) -> int:
    """How many connections the limit of open files has room for, at most ``wanted``.

    This process's own limit is raised first, as far as it may be and as is of use. Raises ``ConfigurationError`` when
    ``wanted`` is more than that, or the limit leaves room for too few.
    """
    own = _open_files() + _SPARE_DESCRIPTORS + _DESCRIPTORS_PER_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = own + (wanted or _MOST_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = needed - own if soft == resource.RLIM_INFINITY else min(needed, soft) - own
    if room < (wanted or _FEWEST_CONNECTIONS):
        name = "max_connections (MOLEFLOW_MAX_CONNECTIONS)"
        raise ConfigurationError(
            f"{name} cannot be {wanted or _FEWEST_CONNECTIONS}: this process may open {soft} files and needs {own} for "
            f"itself, which leaves {max(room, 0)}. Raise the limit of open files (ulimit -n) to {needed}"
            + (", or set fewer connections." if wanted else ".")
        )
    return room


def _open_files() -> int:
    """How many files this process has open; a guess where the system does not tell."""
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.is_dir() else _SPARE_DESCRIPTORS


class Acceptor:
    """Takes the connections of one listening socket. When there are too many, or no files can be opened for more, the
    connection that is missed least makes room (``Connections.make_room``); when none may go, the new ones wait in the
    system's queue until one does."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Connections,
        limit: int,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._told = float("-inf")
        listener.setblocking(False)
        self._go_on()

    def close(self) -> None:
        """Take no more."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)

    def _go_on(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listener, self._accept)

    def _pause(self, why: str) -> None:
        """Try again in a while: the system says of each waiting connection, again and again, that it waits."""
        self._tell(why)
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(_RETRY_SECONDS, self._go_on)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if len(self._connections) + len(self._arriving) >= self._limit:
                if self._arriving:
                    return  # which of the connections is missed least is known when these are among them
                if not self._connections.make_room():
                    self._pause(f"All {self._limit} connections are in use; new ones wait until one ends.")
                    return
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Other than by a lack of files: a fault of the network on that connection's behalf (see accept(2)).
                if error.errno in _OUT_OF_RESOURCES:
                    self._connections.make_room()
                self._pause(f"A connection cannot be taken: {error.strerror or error}.")
                return
            client.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, client))
            self._arriving.add(task)
            task.add_done_callback(self._arrived)

    def _arrived(self, task: "asyncio.Task[object]") -> None:
        self._arriving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(f"A connection was lost as it came: {error}.")

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        if now - self._told > _SILENCE_SECONDS:
            self._told = now
            _logger.warning("%s This is told once in %g s at most.", what, _SILENCE_SECONDS)
