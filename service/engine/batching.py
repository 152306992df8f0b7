"""One bounded queue before the model, emptied in batches by one thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from moleflow.model.errors import OverloadedError
from moleflow.model.verdict.results import Finding
from moleflow.service.engine.inference import Outcome
from moleflow.service.errors import NotReadyError

__all__ = ["Batcher", "Expected", "Inferred"]

_SMOOTHING = 0.2
"""Weight of the newest batch in the running mean of the time per image: about the last ten batches count."""

Judge = Callable[[Sequence[np.ndarray], Sequence[str | None]], Sequence[Outcome]]
"""The model: images ``(S, S, 3)`` uint8 and the wanted expert of each (``None`` routes), to one outcome each."""

Rest = Callable[[], float | None]
"""What is to be done between batches; says after how many seconds it wants to be called again, if at all."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """What was found in one image, how long the image waited, and how long its whole batch then took."""

    finding: Finding
    queue_seconds: float
    inference_seconds: float


@dataclass(slots=True, eq=False)
class _Waiting:
    """One image in the queue. Compared by identity."""

    image: np.ndarray
    task: str | None
    since: float = field(default_factory=perf_counter)
    result: "Future[Inferred]" = field(default_factory=Future)


class Expected:
    """An image that is on its way; see ``Batcher.expecting``."""


class Batcher:
    """A queue of at most ``capacity`` images, handed to the model in batches.

    A batch starts when it is full, when its first image has waited ``max_wait_seconds``, or as soon as no further
    image is on its way (see ``expecting``). A result that its owner cancels leaves the queue at once.
    """

    def __init__(self, *, capacity: int, max_batch_size: int, max_wait_seconds: float) -> None:
        self._capacity = capacity
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._expected: set[Expected | None] = set()
        self._closed = False
        self._seconds_per_image = 0.0

    def __len__(self) -> int:
        """How many images wait."""
        return len(self._queue)

    @property
    def seconds_per_image(self) -> float:
        """Running mean of the model's time for one image; 0 before the first batch."""
        return self._seconds_per_image

    @contextmanager
    def expecting(self) -> Iterator["Expected"]:
        """Announce an image that is about to be submitted: a batch may wait for it, until the block ends.

        To be given to ``submit`` when it has come; else a batch would wait for the very image that it begins with.
        """
        expected = Expected()
        with self._changed:
            self._expected.add(expected)
        try:
            yield expected
        finally:
            with self._changed:
                self._expected.discard(expected)
                self._changed.notify()

    def submit(self, image: np.ndarray, task: str | None, expected: "Expected | None" = None) -> "Future[Inferred]":
        """Queue one image. The future's ``cancel`` takes it out again, unless its batch has started.

        ``expected`` is what ``expecting`` gave for this image. Raises ``OverloadedError`` when the queue is full and
        ``NotReadyError`` after ``close``.
        """
        item = _Waiting(image, task)
        with self._changed:
            self._expected.discard(expected)
            if self._closed:
                raise NotReadyError("The service is stopping and takes no more images; send it to another instance.")
            if len(self._queue) >= self._capacity:
                wait = self._capacity * self._seconds_per_image
                raise OverloadedError(f"All {self._capacity} places in the queue are taken; try again later.", wait)
            self._queue.append(item)
            self._changed.notify()
        # Of the item it must not know: a result that keeps its own image waits for Python's collector to be freed.
        item.result.add_done_callback(self._remove_cancelled)
        return item.result

    def close(self) -> None:
        """Take no more images; ``run`` ends when the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def fail_waiting(self, reason: str) -> None:
        """Answer whoever waits, in the queue or for the batch that is under way, with a ``NotReadyError``."""
        with self._changed:
            waiting = self._running + self._take(len(self._queue))
        for item in waiting:
            _settle(item.result, NotReadyError(reason))

    def run(self, judge: Judge, rest: Rest = lambda: None) -> None:
        """Feed the model until closed and empty. Blocks; to be called by one thread."""
        try:
            while (batch := self._next_batch(rest())) is not None:
                if batch:
                    self._infer(batch, judge)
        finally:
            self.close()
            self.fail_waiting("The inference thread ended, and no image can be judged any more.")

    def _next_batch(self, patience: float | None) -> list[_Waiting] | None:
        """Wait for the next batch: an empty one if none came in ``patience`` seconds, ``None`` if none will come."""
        until = None if patience is None else perf_counter() + patience
        with self._changed:
            while True:
                if self._queue:
                    left = self._seconds_to_wait()
                    if left > 0:
                        self._changed.wait(left)
                    elif batch := self._take(self._max_batch_size):
                        self._running = batch
                        return batch
                elif self._closed:
                    return None
                else:
                    left_to_rest = None if until is None else until - perf_counter()
                    if left_to_rest is not None and left_to_rest <= 0:
                        return []
                    self._changed.wait(left_to_rest)

    def _seconds_to_wait(self) -> float:
        """How long the batch may still wait for more images. The lock is held, the queue is not empty."""
        if self._closed or not self._expected or len(self._queue) >= self._max_batch_size:
            return 0.0
        return self._queue[0].since + self._max_wait_seconds - perf_counter()

    def _take(self, most: int) -> list[_Waiting]:
        """Take up to ``most`` from the queue, without what was cancelled this instant. The lock is held."""
        batch: list[_Waiting] = []
        while self._queue and len(batch) < most:
            item = self._queue.popleft()
            if item.result.set_running_or_notify_cancel():
                batch.append(item)
        return batch

    def _remove_cancelled(self, result: "Future[Inferred]") -> None:
        """Drop an image whose result was cancelled, unless it was taken in the meantime."""
        if not result.cancelled():
            return
        with self._changed:
            for item in self._queue:
                if item.result is result:
                    self._queue.remove(item)
                    return

    def _infer(self, batch: list[_Waiting], judge: Judge) -> None:
        """Run the model on one batch and hand out what came of each image."""
        started = perf_counter()
        outcomes = judge([item.image for item in batch], [item.task for item in batch])
        seconds = perf_counter() - started
        self._running = []
        answered = False
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _settle(item.result, outcome)
            else:
                answered |= _settle(item.result, Inferred(outcome, started - item.since, seconds))
        if answered:
            share, known = seconds / len(batch), self._seconds_per_image
            self._seconds_per_image = share if known == 0 else known + _SMOOTHING * (share - known)


def _settle(result: "Future[Inferred]", outcome: Inferred | Exception) -> bool:
    """Give an answer, unless one was given: the model may come back when nobody waits for it any more."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)
        return True
    return False
