"""The inference thread: it loads the model, judges batches, and tests a model that fails until it works again.

All of it happens in one thread: what PyTorch keeps for each thread is set up where it is used.
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
"""A model that fails is tested after the first, then each time after twice as long, up to the second."""

_MOST_TESTED = 3
"""Products that one test tries at most: an expert may be damaged without anybody having asked for it."""

_logger = logging.getLogger(__name__)


class Worker:
    """The thread behind a queue. ``loaded`` is the model, once it is loaded and warmed up, or what prevented that."""

    def __init__(self, batcher: Batcher, health: Health, metrics: Metrics, max_batch_size: int) -> None:
        self.loaded: Future[Predictor] = Future()
        self._batcher, self._health, self._metrics = batcher, health, metrics
        self._max_batch_size = max_batch_size
        self._thread: threading.Thread | None = None
        self._tests, self._test_at, self._test_pause = 0, 0.0, _FIRST_TEST_SECONDS

    def start(self, load: Callable[[], Predictor]) -> None:
        """Begin to load the model. Returns at once."""
        self._thread = threading.Thread(target=self._run, args=(load,), name="inference", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait at most so long for the thread to end, after the queue was closed; says whether it did."""
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
            # Whoever waits for the future gets this error raised, and some mean something else there: a CancelledError
            # would cancel, and SystemExit, as a plugin may raise it, would end the event loop.
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
                lambda images, tasks: self._judge(predictor, images, tasks), lambda: self._rest(predictor)
            )
        except BaseException:
            _logger.critical("The inference thread ends", exc_info=True)
        finally:
            self._health.thread_ended()

    def _warm_up(self, predictor: Predictor) -> None:
        """Warm up for one image and for a full batch, or for as large a one as there is memory for."""
        predictor.warm_up(1)
        size = self._max_batch_size
        while size > 1:
            try:
                predictor.warm_up(size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                _logger.warning("There is no memory for batches of %d: %s", size, describe(error))
            else:
                return
            predictor.free_memory()
            size //= 2

    def _judge(
        self, predictor: Predictor, images: Sequence[np.ndarray], tasks: Sequence[str | None]
    ) -> Sequence[Outcome]:
        """One batch through the model, counted and timed; what came of each image."""
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
            health.note(outcomes)
            # An image that failed alone may be to blame itself; a blank one is not.
            if self._is_in_doubt(predictor, outcomes):
                self._test(predictor)
        if (reason := health.why_not_judging()) is None:
            return outcomes
        self._batcher.fail_waiting(reason)
        return [_refused(reason, each) if isinstance(each, Exception) else each for each in outcomes]

    def _is_in_doubt(self, predictor: Predictor, outcomes: Sequence[Outcome]) -> bool:
        """Whether a batch leaves it open if the model works: nothing came of it, and not for damaged experts alone."""
        if self._health.is_beyond_repair or not all(isinstance(each, Exception) for each in outcomes):
            return False
        explained = all(isinstance(each, ExpertError) for each in outcomes)
        return not explained or len(self._health.damaged) >= len(predictor.tasks)

    def _on_failure(self, error: BaseException, count: int) -> bool:
        """Note that a call of the model failed; says whether it makes sense to try again."""
        _log(error, count)
        self._health.failed(error)
        if is_out_of_memory(error):
            self._metrics.out_of_memory.inc()
        return not self._health.is_beyond_repair and self._health.stalled() is None

    def _test(self, predictor: Predictor) -> None:
        """Try the model on a blank image, and plan the next try unless it works."""
        said = self._try_products(predictor)
        if said is None:
            if self._health.is_failing:
                _logger.info("The model works again.")
            self._test_pause = _FIRST_TEST_SECONDS
        else:
            self._metrics.self_test_failures.inc()
            _logger.error("The model fails on a blank image too: %s Tested again in %g s.", said, self._test_pause)
            self._test_at = monotonic() + self._test_pause
            self._test_pause = min(2 * self._test_pause, _LONGEST_TEST_SECONDS)
        self._health.tested(said)

    def _try_products(self, predictor: Predictor) -> str | None:
        """Why no product can be judged; ``None`` if one can, or if some were not tried yet.

        A damaged expert says nothing of the model, so those that are thought sound are tried first, and of those that
        are not, others each time: somebody may have mended one.
        """
        tasks, damaged = predictor.tasks, self._health.damaged
        start = self._tests * _MOST_TESTED % max(1, len(tasks))
        self._tests += 1
        names = sorted((task.name for task in (*tasks[start:], *tasks[:start])), key=damaged.__contains__)
        said = "No product was learned."
        for name in names[:_MOST_TESTED]:
            outcome = self_test(predictor, name, on_failure=self._on_failure)
            self._health.note([outcome])
            if not isinstance(outcome, Exception):
                return None
            said = str(outcome)
            if not isinstance(outcome, ExpertError):
                return said
        return said if len(self._health.damaged) >= len(tasks) else None

    def _rest(self, predictor: Predictor) -> float | None:
        """What is to be done between two batches; the seconds after which there is something again, if ever."""
        health = self._health
        if health.is_failing and not health.is_beyond_repair and monotonic() >= self._test_at:
            with health.working():
                self._test(predictor)
        if not health.is_failing or health.is_beyond_repair:
            return None
        return max(0.0, self._test_at - monotonic())


def _log(error: BaseException, count: int) -> None:
    """Tell of a failed call; in full where it is not tried again, but as text: a log may keep what it is given."""
    if count > 1:
        _logger.warning("The model failed on %d images at once: %s", count, describe(error))
    else:
        _logger.error("The model failed on an image: %s", "".join(traceback.format_exception(error)).rstrip())


def _refused(reason: str, cause: Exception) -> NotReadyError:
    """The answer to an image that failed while the model fails on every image."""
    error = NotReadyError(reason)
    error.__cause__ = cause
    return error
