"""Who may use the queue: requests with one image at once or not at all, images of larger requests one after another.

Every image occupies one of ``size`` slots from the end of its upload until its response is sent or, in a request with
many, made. All requests with many images together occupy at most ``lanes`` slots, at most half of them, and wait for
them; so they never take the last slot from a single image, and never fill the model's queue before it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from moleflow.service.errors import OverloadedError

__all__ = ["Admission"]

_MIN_RETRY_SECONDS = 1.0
"""``Retry-After`` is in whole seconds (RFC 9110, section 10.2.3)."""


class Admission:
    """Counts the accepted images. All methods must be called from one event loop.

    ``lanes`` is what keeps the model busy, reduced to half of ``size``. ``seconds_per_image`` estimates when a slot
    will be free.
    """

    def __init__(self, size: int, lanes: int, seconds_per_image: Callable[[], float]) -> None:
        self._size, self._seconds_per_image = size, seconds_per_image
        self.lanes = max(1, min(lanes, size // 2))
        self._free_lanes = asyncio.Semaphore(self.lanes)
        self.accepted = 0
        """Images that occupy a slot."""
        self._requests = 0
        self._freed = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while nothing is accepted."""
        self.idle.set()

    def check(self) -> None:
        """Raise ``OverloadedError`` if all slots are occupied."""
        if self.accepted >= self._size:
            wait = max(_MIN_RETRY_SECONDS, self.accepted * self._seconds_per_image())
            raise OverloadedError(
                f"The queue is full ({self.accepted} requests); try again in {math.ceil(wait)} s.", wait
            )

    @contextmanager
    def one(self) -> Iterator[None]:
        """Occupy a slot. Raises ``OverloadedError`` if all are occupied."""
        self.check()
        self.accepted += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.accepted -= 1
            self._freed.set()
            self._note_idle()

    @contextmanager
    def many(self) -> Iterator[None]:
        """Accept a request with many images, of which ``one_of_many`` then admits each.

        Raises ``OverloadedError`` if all slots are occupied, or as many such requests are accepted as there are slots.
        """
        self.check()
        if self._requests >= self._size:
            raise OverloadedError(
                f"There are {self._requests} requests with many images already; try again later.", _MIN_RETRY_SECONDS
            )
        self._requests += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._requests -= 1
            self._note_idle()

    @asynccontextmanager
    async def one_of_many(self) -> AsyncIterator[None]:
        """Occupy a slot as soon as one is free for images of larger requests."""
        async with self._free_lanes:
            while self.accepted >= self._size:
                self._freed.clear()
                await self._freed.wait()
            with self.one():
                yield

    def _note_idle(self) -> None:
        if not self.accepted and not self._requests:
            self.idle.set()
