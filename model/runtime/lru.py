"""An LRU cache for experts on the device; the rest stay in the checkpoint file."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Generic, TypeVar

from moleflow.model.errors import ExpertError

__all__ = ["MAX_EXPERTS", "RETRY_SECONDS", "WARM_EXPERTS", "ExpertCache"]

MAX_EXPERTS = 32
"""Merged experts kept on the device (LRU). One expert of the ``main`` preset takes 60 MB in float32."""

WARM_EXPERTS = 8
"""Experts merged by ``warm_up``, at most: start-up time does not grow with the number of products."""

RETRY_SECONDS = 30.0
"""How long a damaged expert is not read again: reading and verifying one takes as long as scoring several images. After
that it is retried, as the file may have been repaired."""

E = TypeVar("E")


class ExpertCache(Generic[E]):
    """At most ``limit`` experts by index. Thread-safe.

    Concurrent requests for the same expert create it once; only those threads wait. If creation fails, all of them get
    the error and the next request tries again, except that an ``ExpertError`` is raised again for ``retry_seconds``.
    ``drop`` gets each expert that is not kept any longer; it must not raise.
    """

    def __init__(
        self,
        make: Callable[[int], E],
        limit: int,
        retry_seconds: float = RETRY_SECONDS,
        drop: Callable[[E], None] = lambda expert: None,
    ) -> None:
        self.limit, self._drop = limit, drop
        self._make, self._lock, self._retry_seconds = make, threading.Lock(), retry_seconds
        self._kept: OrderedDict[int, Future[E]] = OrderedDict()
        # Not the error itself: its traceback would keep tensors alive.
        self._damaged: dict[int, tuple[str, str, float]] = {}

    def get(self, index: int) -> E:
        """The expert of the task at ``index``. Raises whatever creating it raises."""
        with self._lock:
            if index in self._damaged:
                name, reason, retry_at = self._damaged[index]
                if monotonic() < retry_at:
                    raise ExpertError(name, reason)
                del self._damaged[index]
            kept = self._kept.get(index)
            if kept is not None:
                self._kept.move_to_end(index)
            else:
                # Evict first, so that the limit is never exceeded.
                while len(self._kept) >= self.limit:
                    self._release(self._kept.popitem(last=False)[1])
                made = self._kept[index] = Future()
        return kept.result() if kept is not None else self._fill(index, made)

    def held(self) -> dict[int, E]:
        """The experts that are kept now, the one that was used last at the end."""
        with self._lock:
            made = {index: kept for index, kept in self._kept.items() if kept.done() and not kept.exception()}
        return {index: kept.result() for index, kept in made.items()}

    def put(self, index: int, expert: E) -> None:
        """Keep an expert that was made elsewhere; the cache must have room for it."""
        kept: Future[E] = Future()
        kept.set_result(expert)
        with self._lock:
            self._kept[index] = kept

    def clear(self) -> None:
        with self._lock:
            while self._kept:
                self._release(self._kept.popitem()[1])

    def _release(self, kept: "Future[E]") -> None:
        kept.add_done_callback(lambda made: None if made.exception() else self._drop(made.result()))

    def _fill(self, index: int, made: "Future[E]") -> E:
        try:
            made.set_result(self._make(index))
        except BaseException as error:
            with self._lock:
                if self._kept.get(index) is made:
                    del self._kept[index]
                if isinstance(error, ExpertError):
                    self._damaged[index] = (error.task, error.reason, monotonic() + self._retry_seconds)
            made.set_exception(error)
            raise
        return made.result()
