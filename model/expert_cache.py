"""Experts on the device: a bounded set, least recently used first out; the rest stay in the checkpoint's file."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["ExpertCache"]

E = TypeVar("E")


class ExpertCache(Generic[E]):
    """Experts by index, at most ``limit``. Safe between threads.

    An expert that several threads ask for is made once, by the first; the others wait for it, and only they do. If
    making it fails, all of them get the error, and the next to ask tries again.
    """

    def __init__(self, make: Callable[[int], E], limit: int) -> None:
        self.limit = limit
        self._make, self._lock = make, threading.Lock()
        self._kept: OrderedDict[int, Future[E]] = OrderedDict()

    def get(self, index: int) -> E:
        """The expert of the task at ``index``; whatever making it raises."""
        with self._lock:
            kept = self._kept.get(index)
            if kept is not None:
                self._kept.move_to_end(index)
            else:
                # Room is made before the new one is, so that never more than the limit are there.
                while len(self._kept) >= self.limit:
                    self._kept.popitem(last=False)
                made = self._kept[index] = Future()
        return kept.result() if kept is not None else self._fill(index, made)

    def _fill(self, index: int, made: "Future[E]") -> E:
        try:
            made.set_result(self._make(index))
        except BaseException as error:
            with self._lock:
                if self._kept.get(index) is made:
                    del self._kept[index]
            made.set_exception(error)
            raise
        return made.result()
