"""What takes images and returns responses, independent of HTTP: queue, threads, processes and their health.

Decoding runs in separate processes and encoding in threads, so that neither blocks the event loop or the model. The
model has one thread (``moleflow.service.engine.worker``), which the event loop monitors
(``moleflow.service.engine.health``).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import numpy as np

from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.names import find_named
from moleflow.service.audit import Audit
from moleflow.service.decoding.check import DecoderCheck
from moleflow.service.decoding.pool import DecoderPool
from moleflow.service.engine.admission import Admission
from moleflow.service.engine.batching import Batcher
from moleflow.service.engine.budget import ByteBudget
from moleflow.service.engine.drift import Drift
from moleflow.service.engine.feedback import Feedback
from moleflow.service.engine.health import Health
from moleflow.service.engine.pipeline import Pipeline
from moleflow.service.engine.predictor import Predictor
from moleflow.service.engine.reloading import Reloader, ReloadModel
from moleflow.service.engine.termination import finishes_within, log_thread_stacks
from moleflow.service.engine.threads import in_thread
from moleflow.service.engine.worker import Worker
from moleflow.service.errors import NotLiveError, NotReadyError
from moleflow.service.metrics import Metrics
from moleflow.service.settings import Settings

__all__ = ["UNRECOVERABLE_GRACE_SECONDS", "Engine"]

UNRECOVERABLE_GRACE_SECONDS = 60.0
"""How long an unrecoverable service waits before it exits by itself. An orchestrator that polls ``/health/live``
restarts it sooner; Docker does not."""

_LANES = 2
"""Batches of images of larger requests in progress: while the model works on one, the next is decoded."""

_JOIN_SECONDS = 2.0
"""Timeout for each group of threads when stopping; a thread still running by then hangs."""

_logger = logging.getLogger(__name__)


class Engine:
    """Takes encoded images and returns encoded responses. All methods must be called from one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics = metrics or Metrics()
        self._batcher = Batcher(
            capacity=settings.queue_size,
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_batch_wait_ms / 1000,
        )
        self._decoders = DecoderPool(
            settings.cpu_workers,
            seconds=settings.decode_timeout_seconds,
            max_pixels=settings.max_pixels,
            on_restart=self._on_decoder_restart,
        )
        self._decode_threads = ThreadPoolExecutor(settings.cpu_workers, "decode")
        self._encode_threads = ThreadPoolExecutor(settings.cpu_workers, "encode")
        self.health = Health(settings.batch_timeout_seconds, settings.load_timeout_seconds)
        self._worker = Worker(self._batcher, self.health, metrics, settings.max_batch_size)
        self.feedback = Feedback(settings)
        self.audit = Audit(settings.audit_log)
        self.reloader = Reloader(settings, self._worker, metrics, self.audit)
        drift = Drift(lambda: self._worker.tasks)
        metrics.registry.register(drift)
        self._watching: asyncio.Task[None] | None = None
        self._stopping, self._is_draining = False, False
        self.is_stopped = True
        """Whether all threads have ended; a thread in which the model hangs cannot be ended."""
        self.upload_budget = ByteBudget(settings.upload_memory)
        """Memory for uploads, until their responses are encoded."""
        self.response_budget = ByteBudget(settings.answer_memory)
        """Memory for large responses, until they are sent."""
        self.batch_upload_budget = ByteBudget(settings.upload_memory // 2)
        """What uploads of many images may take of it together."""
        self._admission = Admission(
            settings.queue_size, _LANES * settings.max_batch_size, lambda: self._batcher.seconds_per_image
        )
        self._is_unrecoverable = asyncio.Event()
        self._decoder_check = DecoderCheck(
            lambda data: in_thread(self._decode_threads, lambda: self._decoders.open_rgb(data, FULL_SCALE)),
            self.health.record_decoder_test,
        )
        self.predict = Pipeline(
            self._batcher,
            self._decoders,
            self._decode_threads,
            self._encode_threads,
            metrics,
            drift,
            self.feedback,
            served=lambda: self._worker.predictor,
            on_overload=self._decoder_check.request,
        ).predict
        """Predicts for one image; to be called inside ``admit``."""
        metrics.queue_length.set_function(lambda: len(self._batcher))
        metrics.requests_in_progress.set_function(lambda: self._admission.accepted)
        metrics.ready.set_function(lambda: self.is_ready)
        metrics.live.set_function(lambda: self.health.why_not_live() is None)
        metrics.damaged_products.set_function(lambda: len(self.health.damaged))
        metrics.batch_age.set_function(lambda: self.health.busy_seconds)

    def start(self, load: Callable[[], Predictor], reload: ReloadModel | None = None) -> None:
        """Start loading the model. Returns at once; see ``wait_until_ready``.

        ``reload`` loads the checkpoint file again when it has changed; without it the model stays.
        """
        self.is_stopped = False
        self.reloader.start(reload)
        self._worker.start(load)
        self._watching = asyncio.create_task(self._watch())
        self._decoders.start()

    async def wait_until_ready(self) -> Predictor:
        """The model, once it is loaded and warmed up. Raises what loading raised."""
        await asyncio.shield(asyncio.wrap_future(self._worker.loaded))
        return self._worker.predictor

    async def wait_until_unrecoverable(self) -> str:
        """Wait until the service has been unrecoverable for ``UNRECOVERABLE_GRACE_SECONDS``; returns the reason."""
        await self._is_unrecoverable.wait()
        return self.health.why_not_live() or "The service was unrecoverable."

    def announce_stop(self) -> None:
        """Report not ready, so that load balancers stop sending requests, but accept images until ``stop``."""
        self._is_draining = True

    async def stop(self) -> None:
        """Accept no more images, complete those already accepted, and end all threads.

        Takes at most ``shutdown_timeout_seconds`` and a few seconds more, even if the model hangs; ``is_stopped`` then
        says whether all threads have ended.
        """
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_timeout_seconds):
                await asyncio.gather(self._admission.idle.wait(), self.reloader.stop())
        self._batcher.close()
        stopped = await asyncio.to_thread(self._worker.join, _JOIN_SECONDS)
        self._decoders.close()
        for pool in (self._decode_threads, self._encode_threads):
            pool.shutdown(wait=False, cancel_futures=True)
            stopped &= await asyncio.to_thread(finishes_within, pool.shutdown, _JOIN_SECONDS)
        self._decoder_check.cancel()
        if self._watching is not None:
            self._watching.cancel()
        self.is_stopped = stopped
        if not stopped:
            log_thread_stacks()

    @property
    def is_ready(self) -> bool:
        """Whether the service accepts images and can process them."""
        return not (self._stopping or self._is_draining) and self.health.why_not_ready() is None

    @property
    def predictor(self) -> Predictor:
        """The model. Raises ``NotReadyError`` until it is loaded."""
        return self._worker.predictor

    def check_ready(self) -> Predictor:
        """The model, if the service is ready; else raises ``NotReadyError`` with the reason."""
        if self._is_draining:
            raise NotReadyError("The service is about to stop; send images to another instance.")
        return self._check_accepting()

    def _check_accepting(self) -> Predictor:
        """As ``check_ready``, but also while draining."""
        if self._stopping:
            raise NotReadyError("The service is stopping; send the image to another instance.")
        if (reason := self.health.why_not_ready()) is not None:
            raise NotReadyError(reason)
        return self.predictor

    def check_live(self) -> None:
        """Raise ``NotLiveError`` with the reason if the service must be restarted."""
        if (reason := self.health.why_not_live()) is not None:
            raise NotLiveError(f"{reason} Restart the service.")

    def check_task(self, task: str | None) -> str | None:
        """The stored name of the product ``task``, which may be in any Unicode normalisation form; ``None`` stays
        ``None``. Raises ``UnknownTaskError`` for other names."""
        return None if task is None else find_named(task, self.predictor.tasks).name

    def check_capacity(self) -> None:
        """Raise what ``admit`` would raise now, so that an upload can be rejected before it is read."""
        self._check_accepting()
        self._admission.check()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Occupy one slot, from the end of the upload until the response is sent.

        Raises ``OverloadedError`` when all ``queue_size`` slots are occupied, ``NotReadyError`` when no images are
        accepted.
        """
        self._check_accepting()
        with self._admission.one():
            yield

    @contextmanager
    def admit_many(self) -> Iterator[int]:
        """Accept a request with many images, from the end of its upload until its last answer is sent.

        Yields how many of its images should be in progress at a time. Raises as ``admit``.
        """
        self._check_accepting()
        with self._admission.many():
            yield self._admission.lanes

    @asynccontextmanager
    async def admit_one_of_many(self) -> AsyncIterator[None]:
        """Occupy one slot for an image of a larger request, inside ``admit_many``; waits for it.

        Raises ``NotReadyError`` when the model fails.
        """
        async with self._admission.one_of_many():
            if (reason := self.health.why_not_ready()) is not None:
                raise NotReadyError(reason)
            yield

    async def measure(self, data: bytes) -> tuple[int, int]:
        """Width and height of an image that is decoded as for a prediction; raises what that raises of the image."""
        size = self.predictor.preprocessing.image_size
        decoded, _, _ = await in_thread(self._decode_threads, lambda: self._decoders.decode(data, size))
        return decoded.width, decoded.height

    async def decode(self, data: bytes) -> np.ndarray:
        """An image file as RGB, ``(height, width, 3)`` uint8. Raises ``UnsupportedImageError``, ``ImageTooLargeError``
        and ``OverloadedError``."""
        pixels, *_ = await in_thread(self._decode_threads, lambda: self._decoders.open_rgb(data))
        return pixels

    async def _watch(self) -> None:
        """Fail the requests of a batch that exceeds its timeout, and detect when the service is unrecoverable."""
        interval, not_live_seconds = self.health.check_interval_seconds, 0.0
        while True:
            await asyncio.sleep(interval)
            self.health.check()
            not_live_seconds = 0.0 if self.health.why_not_live() is None else not_live_seconds + interval
            if not_live_seconds >= UNRECOVERABLE_GRACE_SECONDS:
                self._is_unrecoverable.set()
            if (reason := self.health.stalled()) is not None:
                self._batcher.fail_waiting(reason)
            self._decoder_check.poll()

    def _on_decoder_restart(self) -> None:
        self._metrics.decoder_restarts.inc()
        self._decoder_check.request()
