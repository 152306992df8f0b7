"""uvicorn's server with limited connections and a shutdown that clients cannot delay."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn

from moleflow.service.connections.acceptor import Acceptor
from moleflow.service.connections.connection import Connection
from moleflow.service.connections.hangup import on_hangup
from moleflow.service.connections.registry import Connections
from moleflow.service.engine.engine import Engine

__all__ = ["Server"]

_logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
"""How often the server checks for a second signal; the same as uvicorn's."""

_DISCONNECT_GRACE_SECONDS = 2
"""Time for requests to notice that their connection was closed, before uvicorn cancels them."""


class Server(uvicorn.Server):
    """The server of ``engine``'s application. It shuts down in three phases:

    1. Lame duck, for ``lame_duck_seconds`` after SIGTERM (skipped after Ctrl-C): not ready, so that load balancers
       stop sending requests, but requests are still accepted. A second signal ends this phase.
    2. Draining, for at most ``finish_seconds``: no new connections; accepted requests are completed. Then all
       connections are closed.
    3. The engine stops.

    From the first phase on, responses ask the client to close its connection. One that ``shares_port`` with other
    processes leaves them their part of the connections; ``accept_when_ready``: all of them until its model is loaded.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        connections: Connections,
        *,
        connection_limit: int,
        lame_duck_seconds: float,
        finish_seconds: float,
        shares_port: bool = False,
        accept_when_ready: bool = False,
    ) -> None:
        config.timeout_graceful_shutdown = int(finish_seconds) + _DISCONNECT_GRACE_SECONDS
        super().__init__(config)
        self._engine = engine
        self._connections = connections
        self._limit = connection_limit
        self._lame_duck_seconds = lame_duck_seconds
        self._finish_seconds = finish_seconds
        self._shares_port, self._accept_when_ready = shares_port, accept_when_ready
        self._acceptors: list[Acceptor] = []
        self._accepting: asyncio.Task[None] | None = None
        self._got_signal = self._skip_lame_duck = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._skip_lame_duck = self.should_exit or sig != signal.SIGTERM
        self._got_signal = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # starts the application; uvicorn itself listens on nothing
        on_hangup(self._engine.reloader.request, lambda: self.handle_exit(signal.SIGTERM, None))
        if self._accept_when_ready:
            self._accepting = asyncio.create_task(self._accept_later(sockets or []))
        else:
            self._accept(sockets or [])

    def _accept(self, listeners: Sequence[socket.socket]) -> None:
        self._acceptors = [
            Acceptor(listener, self._make_connection, self._connections, self._limit, shares_port=self._shares_port)
            for listener in listeners
        ]

    async def _accept_later(self, listeners: Sequence[socket.socket]) -> None:
        """Leave new connections to the other processes until the model is loaded."""
        with contextlib.suppress(Exception):  # it is reported where loading is awaited
            await self._engine.wait_until_ready()
            self._accept(listeners)

    def _make_connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._connections)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._connections.is_draining = True
        if self._accepting is not None:
            self._accepting.cancel()
        if self._got_signal and not self._skip_lame_duck:
            await self._lame_duck()
        for acceptor in self._acceptors:
            acceptor.close()
        abort = asyncio.get_running_loop().call_later(self._finish_seconds, self._abort_connections)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            abort.cancel()

    async def _lame_duck(self) -> None:
        self._engine.announce_stop()
        _logger.info("Not ready; still accepting requests for %g s.", self._lame_duck_seconds)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._lame_duck_seconds
        while not self._skip_lame_duck and (remaining := end - loop.time()) > 0:
            await asyncio.sleep(min(_TICK_SECONDS, remaining))

    def _abort_connections(self) -> None:
        if count := len(self._connections):
            _logger.error("Closed %d connections that were still open after %g s.", count, self._finish_seconds)
        self._connections.abort_all()
