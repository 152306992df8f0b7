"""The way of a picture through the service: decode, queue, model, encode. Works without HTTP.

Decoding runs in processes of its own and encoding in threads, so that neither the event loop nor the model waits for
them. All batches run in one thread, which also loads and warms up the model: per-thread state is set up where it is
used.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import numpy as np

from model.errors import OverloadedError, UnknownTaskError
from model.results import Finding, Prediction
from service.batching import Batcher
from service.budget import Account, ByteBudget
from service.decoding import Decoders
from service.errors import NotReadyError
from service.metrics import Metrics
from service.predictor import Predictor
from service.render import Answer, AnswerForm, Job, most_bytes, render
from service.settings import Settings

__all__ = ["Engine"]

_SHORTEST_RETRY_SECONDS = 1.0
"""Least time that a refused client is told to wait; ``Retry-After`` counts whole seconds (RFC 9110, section 10.2.3)."""

_SMALL_ANSWER_BYTES = 1024**2
"""Up to this size an answer waits for no memory: all places together hold few of them, and machines ask for them."""

Result = TypeVar("Result")


class Engine:
    """Takes pictures as bytes and answers with bytes. All methods are to be called from one event loop."""

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
            on_replaced=metrics.decoder_restarts.inc,
        )
        self._waiting_for_decoders = ThreadPoolExecutor(settings.cpu_workers, "decode")
        self._encoders = ThreadPoolExecutor(settings.cpu_workers, "encode")
        self._loaded: Future[Predictor] = Future()
        self._thread: threading.Thread | None = None
        self._stopping = self._is_leaving = False
        self.uploads = ByteBudget(settings.upload_memory)
        """Bytes of the bodies that were read, until their answers are made."""
        self.answers = ByteBudget(settings.answer_memory)
        """Bytes of large answers, until they are sent."""
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.watch(metrics.queue_length, lambda: len(self._batcher))
        metrics.watch(metrics.requests_in_progress, lambda: self._accepted)
        metrics.watch(metrics.ready, lambda: self.is_ready)

    def start(self, load: Callable[[], Predictor]) -> None:
        """Begin to load the model, in the inference thread. Returns at once; see ``wait_until_ready``."""
        self._thread = threading.Thread(target=self._work, args=(load,), name="inference", daemon=True)
        self._thread.start()
        self._decoders.start()

    async def wait_until_ready(self) -> Predictor:
        """The model, once it is loaded and warmed up. Raises what loading raised."""
        return await asyncio.shield(asyncio.wrap_future(self._loaded))

    def announce_stop(self) -> None:
        """Be ready no more, so that load goes elsewhere, but go on to take pictures until ``stop``."""
        self._is_leaving = True

    async def stop(self) -> None:
        """Take no more pictures, finish those that were accepted, and end all threads."""
        self._stopping = True
        await self._idle.wait()
        self._batcher.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._decoders.close()
        for pool in (self._waiting_for_decoders, self._encoders):
            await asyncio.to_thread(pool.shutdown)

    @property
    def is_ready(self) -> bool:
        """Whether pictures are taken."""
        return not (self._stopping or self._is_leaving) and self._loaded.done() and self._loaded.exception() is None

    @property
    def predictor(self) -> Predictor:
        """The model. Raises ``NotReadyError``, which says why, while there is none."""
        if not self._loaded.done():
            raise NotReadyError("The model is being loaded; try again in a few seconds.")
        if self._loaded.exception() is not None:
            raise NotReadyError("The model could not be loaded, and the service is of no use; its log says why.")
        return self._loaded.result()

    def check_ready(self) -> Predictor:
        """The model, if pictures should be sent here; else ``NotReadyError``, which says why not."""
        if self._is_leaving:
            raise NotReadyError("The service is about to stop; send pictures to another instance.")
        return self._check_open()

    def _check_open(self) -> Predictor:
        """The model, if pictures are taken; else ``NotReadyError``, which says why not."""
        if self._stopping:
            raise NotReadyError("The service is stopping and takes no more pictures; send it to another instance.")
        return self.predictor

    def check_task(self, task: str | None) -> None:
        """Raise ``UnknownTaskError`` unless the product was learned; ``None``, for routing, is always right."""
        known = tuple(info.name for info in self.predictor.tasks)
        if task is not None and task not in known:
            raise UnknownTaskError(task, known)

    def check_room(self) -> None:
        """Raise what ``admit`` would raise now: an upload that will be refused need not be read first."""
        self._check_open()
        if self._accepted >= self._settings.queue_size:
            wait = max(_SHORTEST_RETRY_SECONDS, self._accepted * self._batcher.seconds_per_picture)
            raise OverloadedError(
                f"All {self._accepted} places of the service are taken; try again in {math.ceil(wait)} s.", wait
            )

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the service's places, from when the upload has arrived until the answer is sent.

        Raises ``OverloadedError`` at once when all are taken, ``NotReadyError`` when no pictures are taken.
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
        form: AnswerForm | None = None,
        account: Account | None = None,
    ) -> Answer:
        """Judge one picture, given as its file's bytes. To be called inside ``admit``.

        ``account``, of ``answers``, holds the bytes of a large answer; it is made when there is room for it.
        ``task`` names the product and skips routing; ``false_alarm_rate`` replaces the deployment's. Cancelling takes
        the picture out of whatever queue it is in. Raises ``UnknownTaskError``, ``UnsupportedImageError``,
        ``ImageTooLargeError`` and ``UnknownProductError``; a failure of the model is a ``RuntimeError``.
        """
        predictor, metrics = self.predictor, self._metrics
        self.check_task(task)
        with self._batcher.expecting() as expected:
            decoded, waited, decode_seconds = await _in_thread(
                self._waiting_for_decoders, lambda: self._decoders.decode(data, predictor.preprocessing)
            )
            metrics.decode_seconds.observe(decode_seconds)
            result = self._batcher.submit(decoded.model_input, task, expected)
        inferred = await asyncio.wrap_future(result)
        finding = inferred.finding
        if isinstance(finding, Prediction):
            _check_finite(finding)
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
        form = form or AnswerForm()
        if account is not None and (most := most_bytes(form, decoded.height, decoded.width)) > _SMALL_ANSWER_BYTES:
            await account.wait_for(most)
        answer, _, encode_seconds = await _in_thread(self._encoders, lambda: render(job, form, self._decoders.open_rgb))
        metrics.encode_seconds.observe(encode_seconds)
        if account is not None:
            account.keep(answer.size)
        return answer

    def _work(self, load: Callable[[], Predictor]) -> None:
        """The inference thread: load, warm up, and then serve batches until the queue is closed."""
        try:
            predictor = load()
            for batch_size in sorted({1, self._settings.max_batch_size}):
                predictor.warm_up(batch_size)
        except Exception as error:
            self._loaded.set_exception(error)
            return
        except BaseException as error:
            # A plugin that calls sys.exit would end this thread silently, and whoever waits would wait for ever.
            failure = RuntimeError(f"loading the model ended with {error!r}")
            failure.__cause__ = error
            self._loaded.set_exception(failure)
            return
        self._loaded.set_result(predictor)
        self._batcher.run(lambda images, tasks: self._infer(predictor, images, tasks))

    def _infer(self, predictor: Predictor, images: Sequence[np.ndarray], tasks: Sequence[str | None]) -> list[Finding]:
        """One batch through the model, counted and timed."""
        self._metrics.batch_size.observe(len(images))
        try:
            with self._metrics.inference_seconds.time():
                return predictor.predict(images, tasks)
        except Exception:
            self._metrics.inference_failures.inc()
            raise


async def _in_thread(pool: Executor, work: Callable[[], Result]) -> tuple[Result, float, float]:
    """Run ``work`` in a pool: its result, the seconds that it waited for a thread, and the seconds that it took."""
    submitted = perf_counter()

    def timed() -> tuple[Result, float, float]:
        started = perf_counter()
        result = work()
        return result, started - submitted, perf_counter() - started

    return await asyncio.get_running_loop().run_in_executor(pool, timed)


def _product(finding: Finding) -> str:
    """The product for the metrics' label; empty, which to Prometheus is as if absent, where none was recognised."""
    return finding.task.name if isinstance(finding, Prediction) else ""


def _check_finite(prediction: Prediction) -> None:
    """A number that is not finite has no place in an answer: it would read as a verdict."""
    if not (math.isfinite(prediction.score) and np.isfinite(prediction.grid_map).all()):
        raise RuntimeError(f"the model's score for a picture of {prediction.task.name!r} is not finite")
