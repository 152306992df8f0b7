"""A self-test of the decoders on a known good image."""

import asyncio
from collections.abc import Awaitable, Callable

from moleflow.model.errors import describe

__all__ = ["DecoderCheck"]

_GOOD_IMAGE = b"GIF87a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
"""One pixel, as a GIF."""


class DecoderCheck:
    """Tests ``decode`` at the first ``poll``, after each ``request``, and after each failed test.

    ``on_result`` gets the reason of a failure, or ``None``.
    """

    def __init__(self, decode: Callable[[bytes], Awaitable[object]], on_result: Callable[[str | None], None]) -> None:
        self._decode, self._on_result = decode, on_result
        self._is_requested = True
        self._test: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Request a test, after an error that the image may not have caused. May be called from any thread."""
        self._is_requested = True

    def poll(self) -> None:
        """Start a test if one is requested and none is running. To be called in the event loop."""
        if self._is_requested and (self._test is None or self._test.done()):
            self._test = asyncio.create_task(self._run())

    def cancel(self) -> None:
        if self._test is not None:
            self._test.cancel()

    async def _run(self) -> None:
        self._is_requested = False
        try:
            await self._decode(_GOOD_IMAGE)
        except Exception as error:
            self._is_requested = True
            self._on_result(describe(error))
        else:
            self._on_result(None)
