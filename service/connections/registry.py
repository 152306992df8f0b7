"""All connections of one server: how many there may be, and which of them must go when there are too many."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from moleflow.service.connections.turns import Turns
from moleflow.service.metrics import Metrics

__all__ = ["Client", "Connections", "Limits", "Phase"]

_UPLOAD_GRACE_SECONDS = 1.0
"""An upload is not given up for another connection before it had this long to show its speed."""


class Phase(IntEnum):
    """What a connection is doing. The lower, the sooner it is closed to make room for a new one."""

    LEAVING = 0
    """Answered and about to be closed; what the client still sends is thrown away."""
    FRESH = 1
    """It has not sent one whole request head yet: nothing, or half of it."""
    IDLE = 2
    """Answered at least once, and kept open for the next request."""
    UPLOADING = 3
    """The body of a request is on its way."""
    BUSY = 4
    """A request is being worked on, or its answer sent. Never closed for another connection."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on every connection, in seconds."""

    header_seconds: float
    """From the first byte of a request head (of a new connection: from its beginning) to the head's end."""
    send_seconds: float
    """The longest time without progress while something waits to be sent."""


class Client(Protocol):
    """What is to be known of one connection."""

    @property
    def phase(self) -> Phase: ...

    @property
    def since(self) -> float:
        """When the phase began, by ``time.monotonic``."""
        ...

    @property
    def upload_rate(self) -> float:
        """Bytes a second that have come since the phase began."""
        ...

    def abort(self) -> None:
        """Close at once, sending nothing more."""
        ...


class Connections:
    """The open connections, and what they have in common."""

    def __init__(self, limits: Limits, metrics: Metrics | None = None) -> None:
        self.limits = limits
        self.is_draining = False
        """Whether the service is about to stop: answers then ask the client to close its connection."""
        self.turns = Turns()
        self._open: set[Client] = set()
        self._metrics = metrics
        self._on_closed: list[Callable[[], None]] = []
        if metrics is not None:
            metrics.watch(metrics.connections, lambda: len(self))

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Client]:
        return iter(tuple(self._open))

    def add(self, client: Client) -> None:
        self._open.add(client)

    def discard(self, client: Client) -> None:
        self._open.discard(client)

    def cut(self, client: Client, reason: str) -> None:
        """Close a connection that its client has lost by misuse, and count it."""
        self._open.discard(client)
        if self._metrics is not None:
            self._metrics.connections_cut.labels(reason).inc()
        client.abort()

    def make_room(self) -> bool:
        """Close the connection that is missed least; whether there was one that may be closed.

        First come those that are leaving, then those that never sent a request, then idle ones, the oldest first; then
        the slowest upload. Clients that wait for an answer keep theirs.
        """
        now = time.monotonic()
        candidates = [client for client in self._open if _may_go(client, now)]
        if not candidates:
            return False
        self.cut(min(candidates, key=_loss), "room")
        return True

    def abort_all(self) -> None:
        """Close every connection at once."""
        for client in self:
            client.abort()


def _may_go(client: Client, now: float) -> bool:
    phase = client.phase
    return phase < Phase.UPLOADING or (phase is Phase.UPLOADING and now - client.since > _UPLOAD_GRACE_SECONDS)


def _loss(client: Client) -> tuple[int, float]:
    """How much a connection is missed; the least goes first."""
    phase = client.phase
    return phase, client.upload_rate if phase is Phase.UPLOADING else client.since
