"""The inference thread: loads the model, runs batches, and tests a failing model until it works again.

All this happens in one thread because PyTorch keeps thread-local state.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic

import numpy as np

from moleflow.model.errors import ExpertError, MoLEFlowError, UnknownTaskError, describe
from moleflow.model.names import find_named
from moleflow.model.runtime.faults import is_out_of_memory
from moleflow.model.verdict.results import CheckpointInfo, TaskInfo
from moleflow.service.engine.batching import Batcher
from moleflow.service.engine.health import Health
from moleflow.service.engine.inference import Outcome, SupersededError, judge, self_test
from moleflow.service.engine.predictor import Predictor
from moleflow.service.errors import NotReadyError
from moleflow.service.metrics import Metrics

__all__ = ["Worker"]

_FIRST_TEST_SECONDS, _LONGEST_TEST_SECONDS = 1.0, 30.0
"""A failing model is tested with exponential backoff, from the first delay up to the second."""

_MAX_TESTED = 3
"""Maximum number of products that one self-test tries, since some experts may be damaged."""

_logger = logging.getLogger(__name__)


class Worker:
    """The thread that consumes the queue.

    ``loaded`` is the first model once it is warmed up, or the error from loading; ``predictor`` the one that serves.
    """

    def __init__(self, batcher: Batcher, health: Health, metrics: Metrics, max_batch_size: int) -> None:
        self.loaded: Future[None] = Future()
        self._batcher, self._health, self._metrics = batcher, health, metrics
        self._max_batch_size = max_batch_size
        self._thread: threading.Thread | None = None
        self._predictor: Predictor | None = None
        self._next: tuple[Predictor, Future[None]] | None = None
        self._tests, self._next_test, self._test_delay = 0, 0.0, _FIRST_TEST_SECONDS

    def start(self, load: Callable[[], Predictor]) -> None:
        self._thread = threading.Thread(target=self._run, args=(load,), name="inference", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end after the queue was closed; returns whether it did."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    @property
    def predictor(self) -> Predictor:
        """The model that serves. Raises ``NotReadyError`` until one is loaded."""
        if self._predictor is None:
            raise NotReadyError(self._health.why_not_ready() or "The model is loading; try again in a few seconds.")
        return self._predictor

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The products that are served; none until a model is loaded."""
        return () if self._predictor is None else self._predictor.tasks

    def exchange(self, predictor: Predictor) -> "Future[None]":
        """Let another model, already warmed up, serve from the next batch on; done when it does, unless cancelled."""
        exchanged: Future[None] = Future()
        self._next = predictor, exchanged
        self._batcher.interrupt()
        return exchanged

    def _run(self, load: Callable[[], Predictor]) -> None:
        try:
            with self._health.loading():
                predictor = load()
                self.warm_up(predictor)
        except BaseException as error:
            self._health.load_failed()
            # The future re-raises the error in the event loop, where a CancelledError would cancel the waiter and
            # SystemExit, which a plugin may raise, would stop the loop.
            if not isinstance(error, MoLEFlowError | OSError | RuntimeError | ImportError):
                failure = RuntimeError(f"loading the model ended with {describe(error)}")
                failure.__cause__ = error
                error = failure
            self.loaded.set_exception(error)
            return
        self._predictor = predictor
        del predictor  # the thread must not keep a model that was replaced
        self._health.loaded()
        self.loaded.set_result(None)
        try:
            self._batcher.run(self._judge, self._between_batches)
        except BaseException:
            _logger.critical("The inference thread died", exc_info=True)
        finally:
            self._health.thread_ended()

    def warm_up(self, predictor: Predictor) -> None:
        """Warm up with one image and with a full batch, halved until it fits into memory."""
        predictor.warm_up(1)
        size = self._max_batch_size
        while size > 1:
            try:
                predictor.warm_up(size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                _logger.warning("Not enough memory for batches of %d: %s", size, describe(error))
            else:
                return
            predictor.free_memory()
            size //= 2

    def _judge(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None]
    ) -> tuple[CheckpointInfo, Sequence[Outcome]]:
        """The checkpoint that serves, and its outcome of each image; an error for those that it cannot take."""
        predictor = self.predictor
        outcomes: list[Outcome | None] = [_misfit(predictor, *each) for each in zip(images, tasks, strict=True)]
        rows = [row for row, error in enumerate(outcomes) if error is None]
        found = (
            self._judge_fitting(predictor, [images[row] for row in rows], [tasks[row] for row in rows]) if rows else []
        )
        for row, outcome in zip(rows, found, strict=True):
            outcomes[row] = outcome
        return predictor.checkpoint, [each for each in outcomes if each is not None]

    def _judge_fitting(
        self, predictor: Predictor, images: Sequence[np.ndarray], tasks: Sequence[str | None]
    ) -> Sequence[Outcome]:
        """Run the model on one batch, update metrics and health, and return the outcome of each image."""
        health, metrics = self._health, self._metrics
        failures = 0

        def on_failure(error: BaseException, count: int) -> bool:
            nonlocal failures
            failures += 1
            return self._on_failure(error, count)

        metrics.batch_size.observe(len(images))
        with health.working():
            with metrics.inference_seconds.time():
                outcomes = judge(predictor, images, tasks, on_failure=on_failure)
            if failures:
                metrics.inference_failures.inc()
            for outcome in outcomes:
                if isinstance(outcome, ExpertError):
                    metrics.expert_failures.labels(outcome.task).inc()
            health.record(outcomes)
            # The images themselves may have caused the failure; a blank image cannot.
            if self._needs_self_test(predictor, outcomes):
                self._self_test(predictor)
        if (reason := health.why_not_predicting()) is None:
            return outcomes
        self._batcher.fail_waiting(reason)
        return [_not_ready(reason, each) if isinstance(each, Exception) else each for each in outcomes]

    def _needs_self_test(self, predictor: Predictor, outcomes: Sequence[Outcome]) -> bool:
        """Whether a batch puts the model in doubt: every image failed, and not only because of damaged experts."""
        if self._health.is_beyond_repair or not all(isinstance(each, Exception) for each in outcomes):
            return False
        explained = all(isinstance(each, ExpertError) for each in outcomes)
        return not explained or len(self._health.damaged) >= len(predictor.tasks)

    def _on_failure(self, error: BaseException, count: int) -> bool:
        """Record a failed model call; returns whether a retry makes sense."""
        _log(error, count)
        self._health.record_failure(error)
        if is_out_of_memory(error):
            self._metrics.out_of_memory.inc()
        return not self._health.is_beyond_repair and self._health.stalled() is None

    def _self_test(self, predictor: Predictor) -> None:
        """Test the model on a blank image, and schedule the next test if it fails."""
        failure = self._try_products(predictor)
        if failure is None:
            if self._health.is_failing:
                _logger.info("The model works again.")
            self._test_delay = _FIRST_TEST_SECONDS
        else:
            self._metrics.self_test_failures.inc()
            _logger.error("The model fails even on a blank image: %s Next test in %g s.", failure, self._test_delay)
            self._next_test = monotonic() + self._test_delay
            self._test_delay = min(2 * self._test_delay, _LONGEST_TEST_SECONDS)
        self._health.record_self_test(failure)

    def _try_products(self, predictor: Predictor) -> str | None:
        """Why no product can be scored; ``None`` if one can, or if some products are still untested.

        A damaged expert says nothing about the model, so intact ones are tried first. Among damaged ones every test
        tries different ones, as they may have been repaired.
        """
        tasks, damaged = predictor.tasks, self._health.damaged
        start = self._tests * _MAX_TESTED % max(1, len(tasks))
        self._tests += 1
        names = sorted((task.name for task in (*tasks[start:], *tasks[:start])), key=damaged.__contains__)
        failure = "No product has been learned."
        for name in names[:_MAX_TESTED]:
            outcome = self_test(predictor, name, on_failure=self._on_failure)
            self._health.record([outcome])
            if not isinstance(outcome, Exception):
                return None
            failure = str(outcome)
            if not isinstance(outcome, ExpertError):
                return failure
        return failure if len(self._health.damaged) >= len(tasks) else None

    def _between_batches(self) -> float | None:
        """Exchange the model if another one is ready, and test a failing one when it is time to.

        Returns the seconds until the next test, if any.
        """
        health = self._health
        if self._next is not None:
            (predictor, exchanged), self._next = self._next, None
            if exchanged.set_running_or_notify_cancel():
                self._predictor = predictor
                health.replaced()
                exchanged.set_result(None)
        if health.is_failing and not health.is_beyond_repair and monotonic() >= self._next_test:
            with health.working():
                self._self_test(self.predictor)
        if not health.is_failing or health.is_beyond_repair:
            return None
        return max(0.0, self._next_test - monotonic())


def _misfit(predictor: Predictor, image: np.ndarray, task: str | None) -> Exception | None:
    """Why the model that serves now cannot take an image that was submitted for another one; ``None`` if it can."""
    if len(image) != predictor.preprocessing.image_size:
        return SupersededError("The image was resized for another model.")
    if task is None:
        return None
    try:
        find_named(task, predictor.tasks)
    except UnknownTaskError as error:
        return error.with_traceback(None)
    return None


def _log(error: BaseException, count: int) -> None:
    """Log a failed call, with a traceback if it is final. As text, since log handlers may keep arguments."""
    if count > 1:
        _logger.warning("The model failed on a batch of %d images: %s", count, describe(error))
    else:
        _logger.error("The model failed on an image: %s", "".join(traceback.format_exception(error)).rstrip())


def _not_ready(reason: str, cause: Exception) -> NotReadyError:
    """The error for an image that failed while the model fails on every image."""
    error = NotReadyError(reason)
    error.__cause__ = cause
    return error
