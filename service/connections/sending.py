"""Sending responses no faster than clients read them, and holding their resources until they are sent."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moleflow.service.connections.connection import Connection

__all__ = ["PiecesResponse", "Sending", "held_until_sent"]

_PIECE_BYTES = 128 * 1024
"""Size of one write; this much of a response is in memory twice."""

_CLOSE = (b"connection", b"close")


def held_until_sent(request: Request) -> ExitStack:
    """A stack of context managers that are exited once the response has been sent or has failed."""
    return request.state.held_until_sent


class PiecesResponse(Response):
    """A response whose body is sent in pieces without concatenating them."""

    def __init__(self, pieces: Sequence[bytes | memoryview], media_type: str, headers: dict[str, str]) -> None:
        length = sum(len(piece) for piece in pieces)
        super().__init__(None, headers=headers | {"Content-Length": str(length)}, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Sending:
    """Splits responses into pieces, each of which waits until the kernel has taken the previous one. The last piece is
    empty: once it is sent, nothing of the response is left in this process.

    Under another server than ours only ``held_until_sent`` has an effect.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as held:
            state = scope.setdefault("state", {})
            state["held_until_sent"] = held
            connection: Connection | None = state.get("connection")
            await self._app(scope, receive, send if connection is None else _paced(send, connection))


def _paced(send: Send, connection: Connection) -> Send:
    async def send_paced(message: Message) -> None:
        if message["type"] == "http.response.start":
            if connection.registry.is_draining:
                others = [(name, value) for name, value in message.get("headers", ()) if name.lower() != _CLOSE[0]]
                message = {**message, "headers": [*others, _CLOSE]}
            await connection.wait_writable(0)
            await send(message)
            return
        for piece in _pieces(message.get("body", b"")):
            await connection.wait_writable(len(piece))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not message.get("more_body", False):
            await connection.wait_writable(0)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_paced


def _pieces(body: bytes | memoryview) -> Iterator[bytes]:
    view = memoryview(body).cast("B") if len(body) else memoryview(b"")
    for start in range(0, len(view), _PIECE_BYTES):
        yield bytes(view[start : start + _PIECE_BYTES])
