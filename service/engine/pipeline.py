"""The path of one image: decode, queue, predict, encode."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from time import perf_counter

from moleflow.model.images.decode import DecodedImage
from moleflow.model.names import find_named
from moleflow.model.verdict.results import Finding, Prediction
from moleflow.service.decoding.pool import DecoderPool
from moleflow.service.engine.batching import Batcher, Inferred
from moleflow.service.engine.budget import Account
from moleflow.service.engine.deadline import NO_DEADLINE, Deadline
from moleflow.service.engine.drift import Drift
from moleflow.service.engine.feedback import Feedback
from moleflow.service.engine.inference import SupersededError
from moleflow.service.engine.predictor import Predictor
from moleflow.service.engine.threads import in_thread
from moleflow.service.errors import OverloadedError
from moleflow.service.metrics import Metrics
from moleflow.service.responses.render import Job, RenderedResponse, ResponseFormat, max_response_bytes, render
from moleflow.service.tracing import record_step, span

__all__ = ["Pipeline"]

_SMALL_RESPONSE_BYTES = 1024**2
"""Responses up to this size bypass the memory budget; even a full queue of them takes little memory."""


class Pipeline:
    """For one event loop. ``served`` returns the model that serves; ``on_overload`` is called when a decoder fails."""

    def __init__(
        self,
        batcher: Batcher,
        decoders: DecoderPool,
        decode_threads: Executor,
        encode_threads: Executor,
        metrics: Metrics,
        drift: Drift,
        feedback: Feedback,
        *,
        served: Callable[[], Predictor],
        on_overload: Callable[[], None],
    ) -> None:
        self._batcher, self._decoders = batcher, decoders
        self._decode_threads, self._encode_threads = decode_threads, encode_threads
        self._metrics, self._drift, self._feedback = metrics, drift, feedback
        self._served, self._on_overload = served, on_overload

    async def predict(
        self,
        data: bytes,
        *,
        task: str | None = None,
        false_alarm_rate: float | None = None,
        response_format: ResponseFormat | None = None,
        account: Account | None = None,
        identifier: str | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> RenderedResponse:
        """Predict for one image file, given as bytes.

        ``task`` names the product and skips routing; ``false_alarm_rate`` overrides the setting; feedback may be given
        for an answer with an ``identifier``. A large response is charged to ``account``, of ``response_budget``, and
        encoded when there is memory for it. Cancelling removes the image from every queue, and past its ``deadline`` it
        begins no further step. Raises ``UnknownTaskError``, ``UnsupportedImageError``, ``ImageTooLargeError`` and
        ``UnknownProductError``; ``ExpertError`` when the product's expert is damaged; ``NotReadyError`` when the model
        fails on every image or hangs; ``PredictionError`` when it fails on this image only; ``DeadlineError``.
        """
        with span("predict") as traced:
            while True:
                # A reload may change the size of images while this one is decoded or waits.
                with contextlib.suppress(SupersededError):
                    decoded, inferred, waited, decode_seconds = await self._infer(data, task, deadline)
                    break
            finding = inferred.finding
            self._count(finding)
            if false_alarm_rate is not None:
                finding = finding.at(false_alarm_rate)
            product = finding.task.name if isinstance(finding, Prediction) else ""  # to Prometheus an absent label
            self._metrics.predictions.labels(product, finding.verdict.value).inc()
            queue_seconds = waited + inferred.queue_seconds
            self._metrics.queue_seconds.observe(queue_seconds)
            traced.describe(finding)
            job = Job(
                data=data,
                width=decoded.width,
                height=decoded.height,
                finding=finding,
                checkpoint=inferred.checkpoint,
                forced=task is not None,
                decode_seconds=decode_seconds,
                queue_seconds=queue_seconds,
                inference_seconds=inferred.inference_seconds,
                identifier=identifier,
            )
            response = await self._encode(job, response_format or ResponseFormat(), account, deadline)
        if identifier is not None:
            self._feedback.remember(identifier, data, product or None)
        return response

    def _count(self, finding: Finding) -> None:
        """Record the numbers of a result, which is at the service's false-alarm rate."""
        self._metrics.novelty.observe(finding.novelty_score)
        if isinstance(finding, Prediction):
            self._metrics.p_values.labels(finding.task.name).observe(finding.p_value)
            self._metrics.scores.labels(finding.task.name).observe(finding.score)
            self._drift.observe(finding)

    async def _infer(
        self, data: bytes, task: str | None, deadline: Deadline
    ) -> tuple[DecodedImage, Inferred, float, float]:
        """Decode an image and let the model judge it; also the seconds of waiting for a decoder and of decoding."""
        predictor = self._served()
        task = None if task is None else find_named(task, predictor.tasks).name
        size = predictor.preprocessing.image_size

        def decode() -> DecodedImage:
            deadline.check()
            return self._decoders.decode(data, size)

        with self._batcher.expecting() as expected:
            started = perf_counter()
            try:
                decoded, waited, decode_seconds = await in_thread(self._decode_threads, decode)
            except OverloadedError:
                self._on_overload()
                raise
            self._metrics.decode_seconds.observe(decode_seconds)
            record_step("decode", started + waited, decode_seconds)
            queued = perf_counter()
            result = self._batcher.submit(decoded.pixels, task, expected, deadline.at)
        inferred = await asyncio.wrap_future(result)
        record_step("queue", queued, inferred.queue_seconds)
        record_step("inference", queued + inferred.queue_seconds, inferred.inference_seconds)
        return decoded, inferred, waited, decode_seconds

    async def _encode(
        self, job: Job, response_format: ResponseFormat, account: Account | None, deadline: Deadline
    ) -> RenderedResponse:
        """Render the response, a large one once there is memory for it."""
        max_bytes = max_response_bytes(response_format, job.height, job.width)
        if account is not None and max_bytes > _SMALL_RESPONSE_BYTES:
            await account.wait_for(max_bytes)

        def encode() -> RenderedResponse:
            deadline.check()
            return render(job, response_format, self._decoders.open_rgb)

        started = perf_counter()
        response, waited, seconds = await in_thread(self._encode_threads, encode)
        self._metrics.encode_seconds.observe(seconds)
        record_step("encode", started + waited, seconds)
        if account is not None:
            account.shrink_to(response.size)
        return response
