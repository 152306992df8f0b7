"""The way of an image through the service: decode, queue, model, encode. Works without HTTP.

Decoding runs in processes of its own and encoding in threads, so that neither the event loop nor the model waits for
them. The model has one thread (``moleflow.service.engine.worker``), and the event loop watches it
(``moleflow.service.engine.health``).
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from moleflow.model.errors import OverloadedError, describe
from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.names import find_named
from moleflow.model.verdict.results import Finding, Prediction
from moleflow.service.decoding.check import DecoderCheck
from moleflow.service.decoding.pool import Decoders
from moleflow.service.engine.batching import Batcher
from moleflow.service.engine.budget import Account, ByteBudget
from moleflow.service.engine.ending import ends_within, tell_of_threads
from moleflow.service.engine.health import Health
from moleflow.service.engine.predictor import Predictor
from moleflow.service.engine.worker import Worker
from moleflow.service.errors import NotLiveError, NotReadyError
from moleflow.service.metrics import Metrics
from moleflow.service.responses.render import Answer, Job, ResponseFormat, most_bytes, render
from moleflow.service.settings import Settings

__all__ = ["USELESS_SECONDS", "Engine"]

USELESS_SECONDS = 60.0
"""How long a service that only a restart helps waits for one, before it ends by itself: an orchestrator that asks
``/health/live`` is faster, and Docker has none."""

_SHORTEST_RETRY_SECONDS = 1.0
"""Least time that a refused client is told to wait; ``Retry-After`` counts whole seconds (RFC 9110, section 10.2.3)."""

_SMALL_ANSWER_BYTES = 1024**2
"""Up to this size an answer waits for no memory: all places together hold few of them, and machines ask for them."""

_JOIN_SECONDS = 2.0
"""How long each of the engine's kinds of threads is waited for at the end: all that is left to do then hangs."""

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


class Engine:
    """Takes images as bytes and answers with bytes. All methods are to be called from one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics = metrics or Metrics()
        self._batcher = Batcher(
            capacity=settings.queue_size,
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_batch_wait_ms / 1000,
        )
        self._decoders = Decoders(
            settings.cpu_workers,
            seconds=settings.decode_timeout_seconds,
            max_pixels=settings.max_pixels,
            on_replaced=self._on_decoder_replaced,
        )
        self._waiting_for_decoders = ThreadPoolExecutor(settings.cpu_workers, "decode")
        self._encoders = ThreadPoolExecutor(settings.cpu_workers, "encode")
        self.health = Health(settings.batch_timeout_seconds, settings.load_timeout_seconds)
        self._worker = Worker(self._batcher, self.health, metrics, settings.max_batch_size)
        self._watching: asyncio.Task[None] | None = None
        self._stopping, self._is_leaving, self._has_ended = False, False, True
        self.uploads = ByteBudget(settings.upload_memory)
        """Bytes of the bodies that were read, until their answers are made."""
        self.answers = ByteBudget(settings.answer_memory)
        """Bytes of large answers, until they are sent."""
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_useless = asyncio.Event()
        self._decoder_check = DecoderCheck(
            lambda data: _in_thread(self._waiting_for_decoders, lambda: self._decoders.open_rgb(data, FULL_SCALE)),
            self.health.decoding_tested,
        )
        metrics.watch(metrics.queue_length, lambda: len(self._batcher))
        metrics.watch(metrics.requests_in_progress, lambda: self._accepted)
        metrics.watch(metrics.ready, lambda: self.is_ready)
        metrics.watch(metrics.live, lambda: self.health.why_not_live() is None)
        metrics.watch(metrics.damaged_products, lambda: len(self.health.damaged))
        metrics.watch(metrics.batch_age, lambda: self.health.busy_seconds)

    def start(self, load: Callable[[], Predictor]) -> None:
        """Begin to load the model, in the inference thread. Returns at once; see ``wait_until_ready``."""
        self._has_ended = False
        self._worker.start(load)
        self._watching = asyncio.create_task(self._watch())
        self._decoders.start()

    async def wait_until_ready(self) -> Predictor:
        """The model, once it is loaded and warmed up. Raises what loading raised."""
        return await asyncio.shield(asyncio.wrap_future(self._worker.loaded))

    async def wait_until_useless(self) -> str:
        """Why nothing but a restart helps, ``USELESS_SECONDS`` after that came about."""
        await self._is_useless.wait()
        return self.health.why_not_live() or "The service needed a restart."

    def announce_stop(self) -> None:
        """Be ready no more, so that load goes elsewhere, but go on to take images until ``stop``."""
        self._is_leaving = True

    async def stop(self) -> None:
        """Take no more images, finish those that were accepted, and end all threads.

        Takes no longer than ``shutdown_timeout_seconds`` and a few seconds more, whatever the model does; ``has_ended``
        then says whether all threads did.
        """
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_timeout_seconds):
                await self._idle.wait()
        self._batcher.close()
        ends = await asyncio.to_thread(self._worker.join, _JOIN_SECONDS)
        self._decoders.close()
        for pool in (self._waiting_for_decoders, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)
            ends &= await asyncio.to_thread(ends_within, pool.shutdown, _JOIN_SECONDS)
        self._decoder_check.cancel()
        if self._watching is not None:
            self._watching.cancel()
        self._has_ended = ends
        if not ends:
            tell_of_threads()

    @property
    def has_ended(self) -> bool:
        """Whether no thread is left to wait for; one in which the model hangs cannot be ended."""
        return self._has_ended

    @property
    def is_ready(self) -> bool:
        """Whether images should be sent here: they are taken, and will be judged."""
        return not (self._stopping or self._is_leaving) and self.health.why_not_ready() is None

    @property
    def predictor(self) -> Predictor:
        """The model. Raises ``NotReadyError``, which says why, while there is none."""
        loaded = self._worker.loaded
        if not loaded.done() or loaded.exception() is not None:
            raise NotReadyError(self.health.why_not_ready() or "The model is being loaded; try again in a few seconds.")
        return loaded.result()

    def check_ready(self) -> Predictor:
        """The model, if images should be sent here; else ``NotReadyError``, which says why not."""
        if self._is_leaving:
            raise NotReadyError("The service is about to stop; send images to another instance.")
        return self._check_open()

    def _check_open(self) -> Predictor:
        """The model, if images are taken; else ``NotReadyError``, which says why not."""
        if self._stopping:
            raise NotReadyError("The service is stopping and takes no more images; send it to another instance.")
        if (reason := self.health.why_not_ready()) is not None:
            raise NotReadyError(reason)
        return self.predictor

    def check_live(self) -> None:
        """Raise ``NotLiveError``, which says why, when nothing but a restart helps."""
        if (reason := self.health.why_not_live()) is not None:
            raise NotLiveError(f"{reason} Restart the service.")

    def check_task(self, task: str | None) -> str | None:
        """The learned product that is called ``task`` in any form of Unicode, as it is named in answers; ``None``, for
        routing, is always right. Raises ``UnknownTaskError`` for other names."""
        return None if task is None else find_named(task, self.predictor.tasks).name

    def check_room(self) -> None:
        """Raise what ``admit`` would raise now: an upload that will be refused need not be read first."""
        self._check_open()
        if self._accepted >= self._settings.queue_size:
            wait = max(_SHORTEST_RETRY_SECONDS, self._accepted * self._batcher.seconds_per_image)
            raise OverloadedError(
                f"All {self._accepted} places of the service are taken; try again in {math.ceil(wait)} s.", wait
            )

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the service's places, from when the upload has arrived until the answer is sent.

        Raises ``OverloadedError`` at once when all are taken, ``NotReadyError`` when no images are taken.
        """
        self.check_room()
        self._accepted += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._accepted -= 1
            if not self._accepted:
                self._idle.set()

    async def predict(
        self,
        data: bytes,
        *,
        task: str | None = None,
        false_alarm_rate: float | None = None,
        form: ResponseFormat | None = None,
        account: Account | None = None,
    ) -> Answer:
        """Judge one image, given as its file's bytes. To be called inside ``admit``.

        ``account``, of ``answers``, holds the bytes of a large answer; it is made when there is room for it.
        ``task`` names the product and skips routing; ``false_alarm_rate`` replaces the deployment's. Cancelling takes
        the image out of whatever queue it is in. Raises ``UnknownTaskError``, ``UnsupportedImageError``,
        ``ImageTooLargeError`` and ``UnknownProductError``; ``ExpertError`` when the product's expert is damaged;
        ``NotReadyError`` when the model fails on everything or hangs; ``PredictionError`` when on this image alone.
        """
        predictor, metrics = self.predictor, self._metrics
        task = self.check_task(task)
        with self._batcher.expecting() as expected:
            try:
                decoded, waited, decode_seconds = await _in_thread(
                    self._waiting_for_decoders, lambda: self._decoders.decode(data, predictor.preprocessing.image_size)
                )
            except OverloadedError:
                self._decoder_check.doubt()
                raise
            metrics.decode_seconds.observe(decode_seconds)
            result = self._batcher.submit(decoded.pixels, task, expected)
        inferred = await asyncio.wrap_future(result)
        finding = inferred.finding
        if false_alarm_rate is not None:
            finding = finding.at(false_alarm_rate)
        metrics.predictions.labels(_product(finding), finding.verdict.value).inc()
        queue_seconds = waited + inferred.queue_seconds
        metrics.queue_seconds.observe(queue_seconds)
        job = Job(
            data=data,
            width=decoded.width,
            height=decoded.height,
            finding=finding,
            checkpoint=predictor.checkpoint,
            forced=task is not None,
            decode_seconds=decode_seconds,
            queue_seconds=queue_seconds,
            inference_seconds=inferred.inference_seconds,
        )
        form = form or ResponseFormat()
        if account is not None and (most := most_bytes(form, decoded.height, decoded.width)) > _SMALL_ANSWER_BYTES:
            await account.wait_for(most)
        answer, _, encode_seconds = await _in_thread(self._encoders, lambda: render(job, form, self._decoders.open_rgb))
        metrics.encode_seconds.observe(encode_seconds)
        if account is not None:
            account.keep(answer.size)
        return answer

    async def _watch(self) -> None:
        """Answer whoever waits for a batch that does not come to an end, and see when there is no hope left."""
        useless = 0.0
        while True:
            await asyncio.sleep(self.health.look_seconds)
            self.health.look()
            useless = 0.0 if self.health.why_not_live() is None else useless + self.health.look_seconds
            if useless >= USELESS_SECONDS:
                self._is_useless.set()
            if (reason := self.health.stalled()) is not None:
                self._batcher.fail_waiting(reason)
            self._decoder_check.look()

    def _on_decoder_replaced(self) -> None:
        self._metrics.decoder_restarts.inc()
        self._decoder_check.doubt()


async def _in_thread(pool: Executor, work: Callable[[], Result]) -> tuple[Result, float, float]:
    """Run ``work`` in a pool: its result, the seconds that it waited for a thread, and the seconds that it took."""
    submitted = perf_counter()

    def timed() -> tuple[Result, float, float]:
        started = perf_counter()
        try:
            result = work()
        except Exception:
            raise
        except BaseException as error:
            # It belongs to this request; raised in the event loop, SystemExit and its like would end the service.
            raise RuntimeError(f"a thread was told to end: {describe(error)}") from error
        return result, started - submitted, perf_counter() - started

    return await asyncio.get_running_loop().run_in_executor(pool, timed)


def _product(finding: Finding) -> str:
    """The product for the metrics' label; empty, which to Prometheus is as if absent, where none was recognised."""
    return finding.task.name if isinstance(finding, Prediction) else ""
