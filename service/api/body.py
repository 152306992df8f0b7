"""Reading request bodies, with a minimum rate, a deadline and a memory budget."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from moleflow.service.engine.budget import Account

__all__ = ["read_body", "read_json"]

Model = TypeVar("Model", bound=BaseModel)

_MAX_JSON_BYTES = 16 * 1024
"""A name has at most 255 bytes."""

_MIN_BYTES_PER_SECOND = 1024
"""A hundredth of a poor mobile link."""

_WINDOW_SECONDS = 10.0
"""The rate is measured over this window, so that a link may stall briefly."""

_FRAMING_BYTES = 64 * 1024
_FRAMING_FRACTION = 1 / 64
"""Limits for the framing of a chunked body, absolute and relative to the payload. Chunks of 500 bytes have 1.4 % of
framing; chunks of one byte have six times the payload, and each costs microseconds to parse."""


async def read_body(request: Request, account: Account, timeout_seconds: float) -> AsyncGenerator[bytes, None]:
    """The body, chunk by chunk; each chunk is charged to ``account``.

    Raises ``HTTPException`` 408 when the body misses the deadline or arrives too slowly, and 400 when its chunks are
    too small; ``OverloadedError`` when the memory budget for uploads is exhausted; ``ClientDisconnect``.
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
        chunk = message.get("body", b"")
        more = message.get("more_body", True)
        received, in_window = received + len(chunk), in_window + len(chunk)
        if more and now() >= deadline:
            raise HTTPException(
                408, f"The upload was not complete after {timeout_seconds:g} s; send it again over a faster connection."
            )
        if more and now() >= window_end:
            if in_window < _MIN_BYTES_PER_SECOND * _WINDOW_SECONDS:
                raise HTTPException(
                    408,
                    f"Only {in_window} bytes of the upload arrived in {_WINDOW_SECONDS:g} s; send it again over a "
                    "faster connection.",
                )
            window_end, in_window = now() + _WINDOW_SECONDS, 0
        _check_framing(request, received)
        if chunk:
            account.take(len(chunk))
            yield chunk


async def read_json(
    request: Request,
    schema: type[Model],
    account: Account,
    timeout_seconds: float,
    *,
    max_bytes: int = _MAX_JSON_BYTES,
) -> Model:
    """A JSON body of at most ``max_bytes``. Raises as ``read_body``, and ``HTTPException`` 413 and
    ``RequestValidationError``."""
    pieces: list[bytes] = []
    async with contextlib.aclosing(read_body(request, account, timeout_seconds)) as chunks:
        async for chunk in chunks:
            pieces.append(chunk)
            if sum(map(len, pieces)) > max_bytes:
                raise HTTPException(413, f"The JSON body has more than {max_bytes:,} bytes, which is the limit.")
    try:
        return schema.model_validate_json(b"".join(pieces))
    except ValidationError as error:
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        ) from error


def _check_framing(request: Request, received: int) -> None:
    """Reject a body with a large proportion of chunk framing."""
    connection = getattr(request.state, "connection", None)  # absent under another server
    framing = connection.framing_bytes if connection is not None else 0
    if framing > _FRAMING_BYTES + received * _FRAMING_FRACTION:
        raise HTTPException(
            400,
            f"The body's chunks are too small: their framing takes {framing:,} bytes. Send larger chunks, or a "
            "Content-Length.",
            # Reusing the connection would mean parsing the rest of the body, which is the cost to avoid.
            headers={"Connection": "close"},
        )
