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

from moleflow.model.errors import ExpertError, MoLEFlowError, describe
from moleflow.model.runtime.faults import is_out_of_memory
from moleflow.service.engine.batching import Batcher
from moleflow.service.engine.health import Health
from moleflow.service.engine.inference import Outcome, judge, self_test
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
    """The thread that consumes the queue. ``loaded`` is the model once it is warmed up, or the error from loading."""

    def __init__(self, batcher: Batcher, health: Health, metrics: Metrics, max_batch_size: int) -> None:
        self.loaded: Future[Predictor] = Future()
        self._batcher, self._health, self._metrics = batcher, health, metrics
        self._max_batch_size = max_batch_size
        self._thread: threading.Thread | None = None
        self._tests, self._next_test, self._test_delay = 0, 0.0, _FIRST_TEST_SECONDS

    def start(self, load: Callable[[], Predictor]) -> None:
        self._thread = threading.Thread(target=self._run, args=(load,), name="inference", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end after the queue was closed; returns whether it did."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, load: Callable[[], Predictor]) -> None:
        try:
            with self._health.loading():
                predictor = load()
                self._warm_up(predictor)
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
        self._health.loaded()
        self.loaded.set_result(predictor)
        try:
            self._batcher.run(
                lambda images, tasks: self._judge(predictor, images, tasks), lambda: self._between_batches(predictor)
            )
        except BaseException:
            _logger.critical("The inference thread died", exc_info=True)
        finally:
            self._health.thread_ended()

    def _warm_up(self, predictor: Predictor) -> None:
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

    def _between_batches(self, predictor: Predictor) -> float | None:
        """Test a failing model when it is time to; returns the seconds until the next test, if any."""
        health = self._health
        if health.is_failing and not health.is_beyond_repair and monotonic() >= self._next_test:
            with health.working():
                self._self_test(predictor)
        if not health.is_failing or health.is_beyond_repair:
            return None
        return max(0.0, self._next_test - monotonic())


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
