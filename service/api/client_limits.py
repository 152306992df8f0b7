"""Limits of prediction requests for each client: the owner of an API key, or an address where there are no keys."""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from starlette.requests import Request

from moleflow.service.connections.sending import held_until_sent
from moleflow.service.errors import ClientLimitError
from moleflow.service.settings import Settings

__all__ = ["ClientLimits", "limit_client"]

_MAX_CLIENTS = 10_000
"""Clients that are remembered: ten times as many as may be connected by default."""

_IPV6_PREFIX = 64
"""Bits of an IPv6 address that stand for a client, who may use any of the others (RFC 6177)."""

_RETRY_SECONDS = 1.0
"""``Retry-After`` for a client with as many requests in progress as it may have."""


@dataclass(slots=True)
class _Client:
    """``tokens`` is how many requests it could begin at the time ``at``."""

    tokens: float
    at: float
    in_progress: int = 0


class ClientLimits:
    """Requests per second, as a token bucket of one second, and requests in progress; 0 is no limit. For one loop."""

    def __init__(self, per_second: float, in_progress: int) -> None:
        self._per_second, self._in_progress = per_second, in_progress
        self._burst = max(1.0, per_second)
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> "ClientLimits | None":
        """The limits that are set; ``None`` if there are none."""
        per_second, in_progress = settings.client_requests_per_second, settings.client_requests_in_progress
        return cls(per_second, in_progress) if per_second or in_progress else None

    def __len__(self) -> int:
        return len(self._clients)

    @contextmanager
    def admit(self, name: str) -> Iterator[None]:
        """Count a request until the end of the block. Raises ``ClientLimitError``."""
        client = self._find(name)
        self._check(client)
        client.tokens -= 1
        client.in_progress += 1
        try:
            yield
        finally:
            client.in_progress -= 1

    def _check(self, client: _Client) -> None:
        if self._in_progress and client.in_progress >= self._in_progress:
            raise ClientLimitError(
                f"This client has {client.in_progress} requests in progress, which is its limit; wait for an answer "
                "before the next request.",
                _RETRY_SECONDS,
            )
        if self._per_second and client.tokens < 1:
            wait = (1 - client.tokens) / self._per_second
            raise ClientLimitError(
                f"This client has sent {self._per_second:g} requests per second, which is its limit; try again in "
                f"{math.ceil(wait)} s.",
                wait,
            )

    def _find(self, name: str) -> _Client:
        """The client, with the tokens that it has now."""
        now = monotonic()
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(self._burst, now)
            self._forget_idle()
        self._clients.move_to_end(name)
        client.tokens = min(self._burst, client.tokens + (now - client.at) * self._per_second)
        client.at = now
        return client

    def _forget_idle(self) -> None:
        """Forget clients without requests, the one not seen for longest first, while there are too many."""
        if len(self._clients) > _MAX_CLIENTS:
            idle = next((name for name, client in self._clients.items() if not client.in_progress), None)
            if idle is not None:
                del self._clients[idle]


def limit_client(request: Request) -> None:
    """Count a prediction request of its client, until its response is sent. Raises ``ClientLimitError``."""
    limits: ClientLimits | None = request.app.state.client_limits
    if limits is not None:
        held_until_sent(request).enter_context(limits.admit(_client_of(request)))


def _client_of(request: Request) -> str:
    """The owner of the key, or the address. Neither can be taken for the other."""
    name = getattr(request.state, "client", None)
    if name is not None:
        return f"key {name}"
    host = "" if request.client is None else request.client.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return host
