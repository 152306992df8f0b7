"""All connections of one server, and which of them to evict when there are too many."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from moleflow.service.connections.turns import Turns
from moleflow.service.metrics import Metrics

__all__ = ["Client", "Connections", "Limits", "Phase"]

_UPLOAD_GRACE_SECONDS = 1.0
"""An upload is not evicted before its rate has been measured for this long."""


class Phase(IntEnum):
    """What a connection is doing. Lower phases are evicted first."""

    CLOSING = 0
    """The response is sent and the connection about to be closed; further data from the client is discarded."""
    NEW = 1
    """No complete request head has been received yet."""
    IDLE = 2
    """Kept open for the next request after at least one response."""
    UPLOADING = 3
    """A request body is being received."""
    BUSY = 4
    """A request is being processed, or its response sent. Never evicted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Timeouts of every connection, in seconds."""

    header_seconds: float
    """From the first byte of a request head, or from the start of the connection, to the end of the head."""
    send_seconds: float
    """Maximum time without progress while data waits to be sent."""


class Client(Protocol):
    """What the registry needs to know about a connection."""

    @property
    def phase(self) -> Phase: ...

    @property
    def since(self) -> float:
        """When the phase began, by ``time.monotonic``."""
        ...

    @property
    def upload_rate(self) -> float:
        """Bytes received per second since the phase began."""
        ...

    def abort(self) -> None:
        """Close at once, without sending anything more."""
        ...


class Connections:
    """The open connections and their shared state."""

    def __init__(self, limits: Limits, metrics: Metrics | None = None) -> None:
        self.limits = limits
        self.is_draining = False
        """Whether the service is about to stop; responses then ask the client to close its connection."""
        self.turns = Turns()
        self._open: set[Client] = set()
        self._metrics = metrics
        if metrics is not None:
            metrics.connections.set_function(lambda: len(self))

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Client]:
        return iter(tuple(self._open))

    def add(self, client: Client) -> None:
        self._open.add(client)

    def discard(self, client: Client) -> None:
        self._open.discard(client)

    def cut(self, client: Client, reason: str) -> None:
        """Close a connection at once and count it under ``reason``."""
        self._open.discard(client)
        if self._metrics is not None:
            self._metrics.connections_cut.labels(reason).inc()
        client.abort()

    def make_room(self) -> bool:
        """Evict one connection; returns whether one could be evicted.

        The order is: closing, new and idle connections, the oldest first, then the slowest upload. Connections that
        wait for a response are never evicted.
        """
        now = time.monotonic()
        candidates = [client for client in self._open if _is_evictable(client, now)]
        if not candidates:
            return False
        self.cut(min(candidates, key=_eviction_order), "room")
        return True

    def abort_all(self) -> None:
        """Close every connection at once."""
        for client in self:
            client.abort()


def _is_evictable(client: Client, now: float) -> bool:
    phase = client.phase
    return phase < Phase.UPLOADING or (phase is Phase.UPLOADING and now - client.since > _UPLOAD_GRACE_SECONDS)


def _eviction_order(client: Client) -> tuple[int, float]:
    phase = client.phase
    return phase, client.upload_rate if phase is Phase.UPLOADING else client.since
