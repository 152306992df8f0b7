"""A memory budget that all requests share."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from moleflow.service.errors import OverloadedError

__all__ = ["Account", "ByteBudget"]

_RETRY_SECONDS = 2.0
"""About the duration of a large upload or response."""


class ByteBudget:
    """A budget of ``size`` bytes, allocated to accounts. All methods must be called from one event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._allocated = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextmanager
    def account(self, within: "Account | None" = None) -> Iterator["Account"]:
        """The account of one request; released at the end of the block, but not ``within``."""
        account = Account(self, within)
        try:
            yield account
        finally:
            account.release()

    def take(self, size: int) -> bool:
        """Allocate ``size`` bytes if they are free and nobody is waiting."""
        if self._waiting or self._allocated + size > self._size:
            return False
        self._allocated += size
        return True

    async def wait_for(self, size: int) -> None:
        """Allocate ``size`` bytes as soon as they are free, first come, first served."""
        if self.take(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((size, turn))
            else:  # allocated just before the cancellation
                self._allocated -= size
            self._serve()
            raise

    def release(self, size: int) -> None:
        self._allocated -= size
        self._serve()

    @property
    def size(self) -> int:
        return self._size

    def _serve(self) -> None:
        """Allocate free bytes to waiting accounts."""
        while self._waiting and self._allocated + self._waiting[0][0] <= self._size:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._allocated += size
                turn.set_result(None)


class Account:
    """The bytes allocated to one request.

    With ``within``, an account of another budget, every byte counts there as well.
    """

    def __init__(self, budget: ByteBudget, within: "Account | None" = None) -> None:
        self._budget, self._within = budget, within
        self._held = 0

    def take(self, size: int) -> None:
        """Allocate ``size`` more bytes. Raises ``OverloadedError`` when the budget is exhausted."""
        if not self._budget.take(size):
            raise OverloadedError(
                f"The memory budget for uploads ({self._budget.size:,} bytes) is used up; "
                f"try again in {_RETRY_SECONDS:g} s.",
                _RETRY_SECONDS,
            )
        self._held += size
        if self._within is not None:
            self._within.take(size)

    def give_back(self, size: int) -> None:
        """Release ``size`` bytes, here and ``within``."""
        self.shrink_to(self._held - size)
        if self._within is not None:
            self._within.give_back(size)

    async def wait_for(self, size: int) -> None:
        """Allocate ``size`` more bytes, at most the whole budget, as soon as they are free."""
        size = min(size, self._budget.size)
        await self._budget.wait_for(size)
        self._held += size

    def shrink_to(self, size: int) -> None:
        """Release everything beyond ``size`` bytes."""
        if size < self._held:
            self._budget.release(self._held - size)
            self._held = size

    def release(self) -> None:
        self.shrink_to(0)
