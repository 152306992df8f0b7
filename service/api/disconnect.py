"""Giving up work whose client is gone."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

__all__ = ["unless_disconnected"]

Result = TypeVar("Result")


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled if the client disconnects first."""
    working = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            request.app.state.metrics.given_up.labels("abandoned").inc()
            raise ClientDisconnect
        return working.result()
    finally:
        for future in (working, disconnect):
            future.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """Wait until the client disconnects. The body must have been read completely."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
