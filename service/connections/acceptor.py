"""Accepting new connections, up to a limit."""

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

_DEFAULT_CONNECTIONS = 1000
"""Far more than ``queue_size``; each connection may buffer some 300 kB of received data."""

_MIN_CONNECTIONS = 16
"""The service is useless with fewer."""

_ACCEPTS_PER_TURN = 4
"""Connections accepted in one iteration of the event loop. Evicted connections are closed in the next iteration."""

_SPARE_DESCRIPTORS = 64
"""Reserved for pipes to processes, files being read, and new connections of two iterations."""

_DESCRIPTORS_PER_WORKER = 4
"""Sockets and shared files of one decoder process."""

_RETRY_SECONDS = 0.1
"""Delay before accepting again after a failure."""

_WARNING_INTERVAL_SECONDS = 60.0
"""Failures here may occur thousands of times a second; the log gets one per interval."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_logger = logging.getLogger(__name__)


def connection_limit(wanted: int | None, workers: int) -> int:
    """How many connections the limit of open files allows, at most ``wanted``.

    Raises the process's soft limit as far as needed and permitted. Raises ``ConfigurationError`` when the limit allows
    fewer than ``wanted`` connections, or too few at all.
    """
    own = _open_files() + _SPARE_DESCRIPTORS + _DESCRIPTORS_PER_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = own + (wanted or _DEFAULT_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = needed - own if soft == resource.RLIM_INFINITY else min(needed, soft) - own
    if room < (wanted or _MIN_CONNECTIONS):
        name = "max_connections (MOLEFLOW_MAX_CONNECTIONS)"
        raise ConfigurationError(
            f"{name} cannot be {wanted or _MIN_CONNECTIONS}: this process may open {soft} files and needs {own} for "
            f"itself, which leaves {max(room, 0)}. Raise the limit of open files (ulimit -n) to {needed}"
            + (", or set fewer connections." if wanted else ".")
        )
    return room


def _open_files() -> int:
    """How many files this process has open; a guess where there is no ``/proc``."""
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.is_dir() else _SPARE_DESCRIPTORS


class Acceptor:
    """Accepts the connections of one listening socket. At the limit, or when the process runs out of descriptors, the
    least valuable connection is evicted (``Connections.make_room``); if none can be, new connections wait in the
    kernel's backlog. Where other processes accept from the same socket, connections are accepted one at a time, so that
    each process gets some."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Connections,
        limit: int,
        *,
        shares_port: bool = False,
    ) -> None:
        self._listener = listener
        self._accepts_per_turn = 1 if shares_port else _ACCEPTS_PER_TURN
        self._make_protocol = make_protocol
        self._connections = connections
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._last_warning = float("-inf")
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listener, self._accept)

    def _pause(self, reason: str) -> None:
        """Retry later; otherwise the event loop would spin, as the listener stays readable."""
        self._warn(reason)
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(_RETRY_SECONDS, self._resume)

    def _accept(self) -> None:
        for _ in range(self._accepts_per_turn):
            if len(self._connections) + len(self._pending) >= self._limit:
                if self._pending:
                    return  # evict only once these can be considered too
                if not self._connections.make_room():
                    self._pause(f"All {self._limit} connections are in use; new ones wait until one is closed.")
                    return
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # All other errors are pending network errors of the new connection; see accept(2).
                if error.errno in _OUT_OF_RESOURCES:
                    self._connections.make_room()
                self._pause(f"A connection cannot be accepted: {error.strerror or error}.")
                return
            client.setblocking(False)
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, client))
            self._pending.add(task)
            task.add_done_callback(self._connected)

    def _connected(self, task: "asyncio.Task[object]") -> None:
        self._pending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._warn(f"A new connection was lost: {error}.")

    def _warn(self, message: str) -> None:
        now = time.monotonic()
        if now - self._last_warning > _WARNING_INTERVAL_SECONDS:
            self._last_warning = now
            _logger.warning("%s This is logged at most once in %g s.", message, _WARNING_INTERVAL_SECONDS)
