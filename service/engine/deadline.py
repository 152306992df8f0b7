"""Deadlines: an image whose answer would come too late is given up, wherever it waits."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from moleflow.service.errors import DeadlineError

__all__ = ["NO_DEADLINE", "Deadline"]


class Deadline:
    """The time by which a request must be answered: ``seconds`` from now, or never if that is 0.

    ``source`` is what set it, for the message. ``on_expiry`` is called for everything that is given up.
    """

    def __init__(self, seconds: float, source: str = "", on_expiry: Callable[[], None] = lambda: None) -> None:
        self.at = monotonic() + seconds if seconds else math.inf
        """In the time of ``time.monotonic``, which is also the event loop's."""
        self._seconds, self._source, self._on_expiry = seconds, source, on_expiry

    def check(self) -> None:
        """Raise ``DeadlineError`` once the time is over; for work that waited for a thread."""
        if self.at <= monotonic():
            raise self._error()

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancel the block when the time is over, and raise ``DeadlineError``."""
        timer = asyncio.timeout_at(None if self.at == math.inf else self.at)
        try:
            self.check()
            async with timer:
                yield
        except (TimeoutError, DeadlineError) as error:
            if not isinstance(error, DeadlineError) and not timer.expired():
                raise
            self._on_expiry()
            raise self._error() from None

    def _error(self) -> DeadlineError:
        return DeadlineError(
            f"The answer was not ready within {self._seconds:g} s ({self._source}), so the image was given up. Try "
            "again, or allow more time."
        )


NO_DEADLINE = Deadline(0)
