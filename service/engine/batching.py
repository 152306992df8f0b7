"""A bounded queue in front of the model, consumed in batches by one thread."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import numpy as np

from moleflow.model.verdict.results import CheckpointInfo, Finding
from moleflow.service.engine.inference import Outcome
from moleflow.service.errors import DeadlineError, NotReadyError, OverloadedError

__all__ = ["Batcher", "Expected", "Inferred", "Judge"]

_SMOOTHING = 0.2
"""Weight of the newest batch in the exponential moving average of the time per image."""

Judge = Callable[[Sequence[np.ndarray], Sequence[str | None]], tuple[CheckpointInfo, Sequence[Outcome]]]
"""The model: maps images ``(S, S, 3)`` uint8 and the product of each (``None`` to route) to one outcome each, and says
from which checkpoint they are."""

BetweenBatches = Callable[[], float | None]
"""Work to do between batches; returns the seconds until it must be called again, or ``None``."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """The finding for one image, its checkpoint, the time that it waited, and the time that its whole batch took."""

    finding: Finding
    checkpoint: CheckpointInfo
    queue_seconds: float
    inference_seconds: float


@dataclass(slots=True, eq=False)
class _QueuedImage:
    """One image in the queue. Compared by identity."""

    image: np.ndarray
    task: str | None
    due: float
    queued_at: float = field(default_factory=perf_counter)
    result: "Future[Inferred]" = field(default_factory=Future)


class Expected:
    """An announced image; see ``Batcher.expecting``."""


class Batcher:
    """A queue of at most ``capacity`` images, passed to the model in batches.

    A batch starts when it is full, when its first image has waited ``max_wait_seconds``, or when no further image is
    expected (see ``expecting``). Cancelling a result removes its image from the queue at once, and an image that is
    past its deadline takes no place in a batch.
    """

    def __init__(self, *, capacity: int, max_batch_size: int, max_wait_seconds: float) -> None:
        self._capacity = capacity
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._changed = threading.Condition()
        self._queue: deque[_QueuedImage] = deque()
        self._running: list[_QueuedImage] = []
        self._expected: set[Expected | None] = set()
        self._closed = self._interrupted = False
        self._seconds_per_image = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def seconds_per_image(self) -> float:
        """Moving average of the inference time per image; 0 before the first batch."""
        return self._seconds_per_image

    @contextmanager
    def expecting(self) -> Iterator["Expected"]:
        """Announce an image that is about to be submitted, so that a batch may wait for it until the block ends.

        Pass the yielded object to ``submit``; otherwise a batch would wait for an image that it already contains.
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

    def submit(
        self, image: np.ndarray, task: str | None, expected: "Expected | None" = None, due: float = math.inf
    ) -> "Future[Inferred]":
        """Queue one image. Cancelling the future removes it again, unless its batch has started.

        ``expected`` comes from ``expecting``. The future fails with ``DeadlineError`` if no batch has started by
        ``due``, in the time of ``time.monotonic``. Raises ``OverloadedError`` when the queue is full and
        ``NotReadyError`` after ``close``.
        """
        item = _QueuedImage(image, task, due)
        with self._changed:
            self._expected.discard(expected)
            if self._closed:
                raise NotReadyError("The service is stopping; send the image to another instance.")
            if len(self._queue) >= self._capacity:
                wait = self._capacity * self._seconds_per_image
                raise OverloadedError(f"The queue is full ({self._capacity} images); try again later.", wait)
            self._queue.append(item)
            self._changed.notify()
        # The callback must not refer to the item: the reference cycle would keep the image until the next collection.
        item.result.add_done_callback(self._remove_cancelled)
        return item.result

    def close(self) -> None:
        """Accept no more images; ``run`` returns when the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def interrupt(self) -> None:
        """Make ``run`` call ``between_batches`` soon, even if no image arrives."""
        with self._changed:
            self._interrupted = True
            self._changed.notify()

    def fail_waiting(self, reason: str) -> None:
        """Fail all images in the queue and in the running batch with a ``NotReadyError``."""
        with self._changed:
            waiting = self._running + self._take(len(self._queue))
        for item in waiting:
            _resolve(item.result, NotReadyError(reason))

    def run(self, judge: Judge, between_batches: BetweenBatches = lambda: None) -> None:
        """Process batches until closed and empty. Blocks; only one thread may call it."""
        try:
            while (batch := self._next_batch(between_batches())) is not None:
                if batch:
                    self._infer(batch, judge)
        finally:
            self.close()
            self.fail_waiting("The inference thread has died; the service can no longer process images.")

    def _next_batch(self, timeout: float | None) -> list[_QueuedImage] | None:
        """Wait for the next batch: empty after ``timeout`` seconds or an interrupt, ``None`` after closing."""
        deadline = None if timeout is None else perf_counter() + timeout
        with self._changed:
            while True:
                if self._interrupted:
                    self._interrupted = False
                    return []
                if self._queue:
                    wait = self._seconds_to_wait()
                    if wait > 0:
                        self._changed.wait(wait)
                    elif batch := self._take(self._max_batch_size):
                        self._running = batch
                        return batch
                elif self._closed:
                    return None
                else:
                    remaining = None if deadline is None else deadline - perf_counter()
                    if remaining is not None and remaining <= 0:
                        return []
                    self._changed.wait(remaining)

    def _seconds_to_wait(self) -> float:
        """How long the batch may still wait for more images. The caller holds the lock; the queue is not empty."""
        if self._closed or not self._expected or len(self._queue) >= self._max_batch_size:
            return 0.0
        return self._queue[0].queued_at + self._max_wait_seconds - perf_counter()

    def _take(self, count: int) -> list[_QueuedImage]:
        """Take up to ``count`` images from the queue that are not cancelled or late. The caller holds the lock."""
        batch: list[_QueuedImage] = []
        now = monotonic()
        while self._queue and len(batch) < count:
            item = self._queue.popleft()
            if not item.result.set_running_or_notify_cancel():
                continue
            if item.due > now:
                batch.append(item)
            else:
                item.result.set_exception(DeadlineError("The image was not in a batch by its deadline."))
        return batch

    def _remove_cancelled(self, result: "Future[Inferred]") -> None:
        """Drop an image whose result was cancelled, unless it has been taken meanwhile."""
        if not result.cancelled():
            return
        with self._changed:
            for item in self._queue:
                if item.result is result:
                    self._queue.remove(item)
                    return

    def _infer(self, batch: list[_QueuedImage], judge: Judge) -> None:
        started = perf_counter()
        checkpoint, outcomes = judge([item.image for item in batch], [item.task for item in batch])
        seconds = perf_counter() - started
        self._running = []
        succeeded = False
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _resolve(item.result, outcome)
            else:
                succeeded |= _resolve(item.result, Inferred(outcome, checkpoint, started - item.queued_at, seconds))
        if succeeded:
            latest, mean = seconds / len(batch), self._seconds_per_image
            self._seconds_per_image = latest if mean == 0 else mean + _SMOOTHING * (latest - mean)


def _resolve(result: "Future[Inferred]", outcome: Inferred | Exception) -> bool:
    """Resolve a future unless ``fail_waiting`` has done so; returns whether it was still pending."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)
        return True
    return False
