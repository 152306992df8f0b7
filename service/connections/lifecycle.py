"""uvicorn's server with bounded connections, and an end that comes in time whatever clients do."""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn

from moleflow.service.connections.acceptor import Acceptor
from moleflow.service.connections.connection import Connection
from moleflow.service.connections.registry import Connections
from moleflow.service.engine.engine import Engine

__all__ = ["Server"]

_logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
"""How often the server looks whether it was told to stop, as uvicorn does."""

_LAST_STEPS_SECONDS = 2
"""What requests get to notice that their client was cut, before uvicorn cancels them."""


class Server(uvicorn.Server):
    """Serves ``engine``'s application. It ends in three phases:

    1. After SIGTERM (not after Ctrl-C, which nobody's load balancer is to learn of), for ``lame_duck_seconds``: not
       ready, but everything is taken and answered still. A second signal ends this phase.
    2. Nothing new is taken; what was is answered, for at most ``finish_seconds``. Then all connections are cut.
    3. The engine stops.

    From the first phase on, answers ask the client to close its connection.
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
    ) -> None:
        config.timeout_graceful_shutdown = int(finish_seconds) + _LAST_STEPS_SECONDS
        super().__init__(config)
        self._engine = engine
        self._open = connections
        self._limit = connection_limit
        self._lame_duck_seconds = lame_duck_seconds
        self._finish_seconds = finish_seconds
        self._acceptors: list[Acceptor] = []
        self._is_terminated = self._is_hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._is_hurried = self.should_exit or sig != signal.SIGTERM
        self._is_terminated = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # the application alone; uvicorn takes no connections itself
        self._acceptors = [Acceptor(listener, self._connection, self._open, self._limit) for listener in sockets or []]

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._open)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._open.is_draining = True
        if self._is_terminated and not self._is_hurried:
            await self._be_a_lame_duck()
        for acceptor in self._acceptors:
            acceptor.close()
        cutting = asyncio.get_running_loop().call_later(self._finish_seconds, self._cut)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            cutting.cancel()

    async def _be_a_lame_duck(self) -> None:
        """Let whoever sends requests here find another instance."""
        self._engine.announce_stop()
        _logger.info("Not ready any more; requests are taken for another %g s.", self._lame_duck_seconds)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._lame_duck_seconds
        while not self._is_hurried and (left := end - loop.time()) > 0:
            await asyncio.sleep(min(_TICK_SECONDS, left))

    def _cut(self) -> None:
        if len(self._open):
            _logger.error("%d connections are cut, %g s after the stop began.", len(self._open), self._finish_seconds)
        self._open.abort_all()
