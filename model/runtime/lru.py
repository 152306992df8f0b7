"""Experts on the device: a bounded set, least recently used first out; the rest stay in the checkpoint's file."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Generic, TypeVar

from moleflow.model.errors import ExpertError

__all__ = ["RETRY_SECONDS", "ExpertCache"]

RETRY_SECONDS = 30.0
"""An expert that was found damaged is not read again for so long: reading and checking one takes as long as judging
several images. Somebody may have mended it since."""

E = TypeVar("E")


class ExpertCache(Generic[E]):
    """Experts by index, at most ``limit``. Safe between threads.

    An expert that several threads ask for is made once, by the first; the others wait for it, and only they do. If
    making it fails, all of them get the error, and the next to ask tries again; but an ``ExpertError`` is remembered,
    and raised anew to whoever asks in the next ``retry_seconds``.
    """

    def __init__(self, make: Callable[[int], E], limit: int, retry_seconds: float = RETRY_SECONDS) -> None:
        self.limit = limit
        self._make, self._lock, self._retry_seconds = make, threading.Lock(), retry_seconds
        self._kept: OrderedDict[int, Future[E]] = OrderedDict()
        # Name, reason and time only: the error itself would keep what its traceback refers to.
        self._damaged: dict[int, tuple[str, str, float]] = {}

    def get(self, index: int) -> E:
        """The expert of the task at ``index``; whatever making it raises."""
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
                # Room is made before the new one is, so that never more than the limit are there.
                while len(self._kept) >= self.limit:
                    self._kept.popitem(last=False)
                made = self._kept[index] = Future()
        return kept.result() if kept is not None else self._fill(index, made)

    def clear(self) -> None:
        """Let go of all experts; they are made again when they are asked for."""
        with self._lock:
            self._kept.clear()

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
