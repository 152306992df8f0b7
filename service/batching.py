"""One bounded queue before the model, emptied in batches by one thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from model.errors import OverloadedError
from model.results import Finding
from service.errors import NotReadyError

__all__ = ["Batcher", "Expected", "Inferred"]

_SMOOTHING = 0.2
"""Weight of the newest batch in the running mean of the time per picture: about the last ten batches count."""

Predict = Callable[[Sequence[np.ndarray], Sequence[str | None]], list[Finding]]
"""The model: pictures ``(S, S, 3)`` uint8 and the wanted expert of each (``None`` routes), to one finding each."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """What was found in one picture, how long the picture waited, and how long its whole batch then took."""

    finding: Finding
    queue_seconds: float
    inference_seconds: float


@dataclass(slots=True, eq=False)
class _Waiting:
    """One picture in the queue. Compared by identity."""

    image: np.ndarray
    task: str | None
    since: float = field(default_factory=perf_counter)
    result: "Future[Inferred]" = field(default_factory=Future)


class Expected:
    """A picture that is on its way; see ``Batcher.expecting``."""


class Batcher:
    """A queue of at most ``capacity`` pictures, handed to the model in batches.

    A batch starts when it is full, when its first picture has waited ``max_wait_seconds``, or as soon as no further
    picture is on its way (see ``expecting``). A result that its owner cancels leaves the queue at once. When the model
    fails, only that batch's results fail.
    """

    def __init__(self, *, capacity: int, max_batch_size: int, max_wait_seconds: float) -> None:
        self._capacity = capacity
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._expected: set[Expected | None] = set()
        self._closed = False
        self._seconds_per_picture = 0.0

    def __len__(self) -> int:
        """How many pictures wait."""
        return len(self._queue)

    @property
    def seconds_per_picture(self) -> float:
        """Running mean of the model's time for one picture; 0 before the first batch."""
        return self._seconds_per_picture

    @contextmanager
    def expecting(self) -> Iterator["Expected"]:
        """Announce a picture that is about to be submitted: a batch may wait for it, until the block ends.

        To be given to ``submit`` when it has come; else a batch would wait for the very picture that it begins with.
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
        """Queue one picture. The future's ``cancel`` takes it out again, unless its batch has started.

        ``expected`` is what ``expecting`` gave for this picture. Raises ``OverloadedError`` when the queue is full and
        ``NotReadyError`` after ``close``.
        """
        item = _Waiting(image, task)
        with self._changed:
            self._expected.discard(expected)
            if self._closed:
                raise NotReadyError("The service is stopping and takes no more pictures; send it to another instance.")
            if len(self._queue) >= self._capacity:
                wait = self._capacity * self._seconds_per_picture
                raise OverloadedError(f"All {self._capacity} places in the queue are taken; try again later.", wait)
            self._queue.append(item)
            self._changed.notify()
        # Of the item it must not know: a result that keeps its own picture waits for Python's collector to be freed.
        item.result.add_done_callback(self._remove_cancelled)
        return item.result

    def close(self) -> None:
        """Take no more pictures; ``run`` ends when the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self, predict: Predict) -> None:
        """Feed the model until closed and empty. Blocks; to be called by one thread."""
        try:
            while batch := self._next_batch():
                self._infer(batch, predict)
        finally:
            self._abandon()

    def _next_batch(self) -> list[_Waiting]:
        """Wait for the next batch; an empty one means that the queue is closed and empty."""
        with self._changed:
            while True:
                if self._queue:
                    left = self._seconds_to_wait()
                    if left > 0:
                        self._changed.wait(left)
                    elif batch := self._take():
                        return batch
                elif self._closed:
                    return []
                else:
                    self._changed.wait()

    def _seconds_to_wait(self) -> float:
        """How long the batch may still wait for more pictures. The lock is held, the queue is not empty."""
        if self._closed or not self._expected or len(self._queue) >= self._max_batch_size:
            return 0.0
        return self._queue[0].since + self._max_wait_seconds - perf_counter()

    def _take(self) -> list[_Waiting]:
        """Take up to one batch from the queue, without what was cancelled this instant. The lock is held."""
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._max_batch_size:
            item = self._queue.popleft()
            if item.result.set_running_or_notify_cancel():
                batch.append(item)
        return batch

    def _remove_cancelled(self, result: "Future[Inferred]") -> None:
        """Drop a picture whose result was cancelled, unless it was taken in the meantime."""
        if not result.cancelled():
            return
        with self._changed:
            for item in self._queue:
                if item.result is result:
                    self._queue.remove(item)
                    return

    def _infer(self, batch: list[_Waiting], predict: Predict) -> None:
        """Run the model on one batch and hand out the results, or its failure."""
        started = perf_counter()
        try:
            findings = predict([item.image for item in batch], [item.task for item in batch])
            if len(findings) != len(batch):
                raise ValueError(f"the model returned {len(findings)} findings for {len(batch)} pictures")
        except BaseException as error:
            # Whatever the model raises belongs to these requests alone: the thread lives on for the next ones, unless
            # it was told to exit.
            for item in batch:
                item.result.set_exception(_failure(len(batch), error))
            if isinstance(error, Exception):
                return
            raise
        seconds = perf_counter() - started
        share = seconds / len(batch)
        known = self._seconds_per_picture
        self._seconds_per_picture = share if known == 0 else known + _SMOOTHING * (share - known)
        for item, finding in zip(batch, findings, strict=True):
            item.result.set_result(Inferred(finding, started - item.since, seconds))

    def _abandon(self) -> None:
        """Fail whatever still waits when the thread ends early, so that no request hangs."""
        with self._changed:
            self._closed = True
            while self._queue:
                for item in self._take():
                    item.result.set_exception(RuntimeError("the inference thread ended before this picture's turn"))


def _failure(size: int, cause: BaseException) -> RuntimeError:
    """An error for one request of a failed batch; each gets its own, since raising an error writes to it."""
    error = RuntimeError(f"the model failed on a batch of {size}: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
