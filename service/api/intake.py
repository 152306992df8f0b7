"""Reading a body: how fast it must come, and how many bytes of all bodies are held."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from moleflow.service.engine.budget import Account

__all__ = ["body_of"]

_SLOWEST_UPLOAD = 1024
"""Bytes a second below which a body is dripping rather than coming: a hundredth of a poor mobile link."""

_WINDOW_SECONDS = 10.0
"""Time over which the speed is taken, so that a link may pause for a while."""

_FRAMING_BYTES = 64 * 1024
_FRAMING_SHARE = 1 / 64
"""What a chunked body's framing may take beyond its payload: chunks of 500 bytes have 1.4 % of it, those of one byte
six times the payload and some microseconds each."""


async def body_of(request: Request, account: Account, timeout_seconds: float) -> AsyncGenerator[bytes, None]:
    """The body, piece by piece; each is held by ``account`` from here on.

    Raises ``HTTPException`` 408 when the body has not come in time, or comes by drips, and 400 when it comes in chunks
    so small that reading them is the work; ``OverloadedError`` when all bodies together are too much;
    ``ClientDisconnect``.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + timeout_seconds
    window_end, in_window = now() + _WINDOW_SECONDS, 0
    received, more = 0, True
    while more:
        message: Message = {"type": "nothing"}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(deadline, window_end)):
                message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        more = message.get("more_body", True)
        received, in_window = received + len(piece), in_window + len(piece)
        if more and now() >= deadline:
            raise HTTPException(408, f"The upload was not complete after {timeout_seconds:g} s; send it again, faster.")
        if more and now() >= window_end:
            if in_window < _SLOWEST_UPLOAD * _WINDOW_SECONDS:
                raise HTTPException(
                    408, f"The upload brought {in_window} bytes in {_WINDOW_SECONDS:g} s; send it again, faster."
                )
            window_end, in_window = now() + _WINDOW_SECONDS, 0
        _check_framing(request, received)
        if piece:
            account.take(len(piece))
            yield piece


def _check_framing(request: Request, received: int) -> None:
    """Refuse a body of which the chunks' framing is a good part."""
    connection = getattr(request.state, "connection", None)  # of another server, or none, there is nothing to be known
    framing = connection.framing_bytes if connection is not None else 0
    if framing > _FRAMING_BYTES + received * _FRAMING_SHARE:
        raise HTTPException(
            400,
            f"The body's chunks are too small: their framing took {framing:,} bytes. Send larger ones, or none.",
            # What is left of it is thrown away unparsed: to find the end of such a body would be the same work again.
            headers={"Connection": "close"},
        )
