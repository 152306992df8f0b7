"""A bound on the bytes that all requests together hold in memory."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from moleflow.model.errors import OverloadedError

__all__ = ["Account", "ByteBudget"]

_RETRY_SECONDS = 2.0
"""What a client is told to wait when the bytes are used up: about the time of a large upload, or of its answer."""


class ByteBudget:
    """At most ``size`` bytes, lent to accounts. All methods are to be called from one event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lent = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextmanager
    def account(self) -> Iterator["Account"]:
        """What one request holds; given back at the end of the block."""
        account = Account(self)
        try:
            yield account
        finally:
            account.give_back()

    def take(self, size: int) -> bool:
        """Lend ``size`` bytes if they are free and nobody waits for them."""
        if self._waiting or self._lent + size > self._size:
            return False
        self._lent += size
        return True

    async def wait_for(self, size: int) -> None:
        """Lend ``size`` bytes as soon as they are free, in the order of asking."""
        if self.take(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((size, turn))
            else:  # lent in this very moment
                self._lent -= size
            self._serve()
            raise

    def give_back(self, size: int) -> None:
        self._lent -= size
        self._serve()

    @property
    def size(self) -> int:
        return self._size

    @property
    def lent(self) -> int:
        """Bytes that are held now."""
        return self._lent

    def _serve(self) -> None:
        """Lend to those that wait what has become free."""
        while self._waiting and self._lent + self._waiting[0][0] <= self._size:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._lent += size
                turn.set_result(None)


class Account:
    """The bytes that one request holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = 0

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more. Raises ``OverloadedError`` when there are not as many left."""
        if not self._budget.take(size):
            raise OverloadedError(
                f"The uploads on their way fill the {self._budget.size:,} bytes that the service has for them; "
                f"try again in {_RETRY_SECONDS:g} s.",
                _RETRY_SECONDS,
            )
        self._held += size

    async def wait_for(self, size: int) -> None:
        """Hold ``size`` bytes more as soon as they are free; of more than there are in all, all."""
        size = min(size, self._budget.size)
        await self._budget.wait_for(size)
        self._held += size

    def keep(self, size: int) -> None:
        """Give back what is held beyond ``size`` bytes."""
        if size < self._held:
            self._budget.give_back(self._held - size)
            self._held = size

    def give_back(self) -> None:
        self.keep(0)
