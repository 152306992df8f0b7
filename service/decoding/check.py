"""Whether images can be decoded, tried with one that is known to be good whenever something raised a doubt."""

import asyncio
from collections.abc import Awaitable, Callable

from moleflow.model.errors import describe

__all__ = ["DecoderCheck"]

_GOOD_IMAGE = b"GIF87a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
"""One pixel, as a GIF."""


class DecoderCheck:
    """Tries ``decode`` when asked to ``look`` and in doubt, as it is at first, and hands what came of it to ``tell``:
    why the image could not be decoded, or ``None``. It stays in doubt until it could."""

    def __init__(self, decode: Callable[[bytes], Awaitable[object]], tell: Callable[[str | None], None]) -> None:
        self._decode, self._tell = decode, tell
        self._in_doubt = True
        self._trying: asyncio.Task[None] | None = None

    def doubt(self) -> None:
        """Something went wrong for which the image need not be to blame. May be called from any thread."""
        self._in_doubt = True

    def look(self) -> None:
        """Begin to try, if there is a doubt and no try under way. To be called in the event loop."""
        if self._in_doubt and (self._trying is None or self._trying.done()):
            self._trying = asyncio.create_task(self._try())

    def cancel(self) -> None:
        """Give up a try that is under way."""
        if self._trying is not None:
            self._trying.cancel()

    async def _try(self) -> None:
        self._in_doubt = False
        try:
            await self._decode(_GOOD_IMAGE)
        except Exception as error:
            self._in_doubt = True
            self._tell(describe(error))
        else:
            self._tell(None)
