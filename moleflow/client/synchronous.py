"""The client for ordinary programs."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from moleflow.client.errors import ClientError
from moleflow.client.exchange import (
    Attempts,
    Call,
    FolderResult,
    Image,
    MapChoice,
    MapSize,
    batch_call,
    check,
    key_headers,
    predict_call,
    read,
    service_url,
    unreachable,
)
from moleflow.client.folder import images_below
from moleflow.client.teaching import (
    POLL_SECONDS,
    checked,
    feedback_call,
    has_ended,
    job_call,
    teach_calls,
    train_call,
)
from moleflow.service.responses.schemas import (
    BatchResponse,
    FeedbackResponse,
    ImageResult,
    PredictionResponse,
    ReadyResponse,
    TasksResponse,
)
from moleflow.service.responses.teaching import Job, TeachResponse, TeachResult

__all__ = ["Client"]


class Client:
    """A client of the service at ``url``. Threads may share it; close it, or use it in a ``with`` block.

    Args:
        url: where the service is, with the path prefix if a proxy adds one: ``http://127.0.0.1:8000``.
        key: an API key, if the service asks for one.
        deadline: seconds for one call with all its attempts and waits; ``None`` for any. A single step of the network
            may exceed it, but no step begins after it.
        retries: most attempts after the first. Tried again are a full service (429), one that is not ready (503), and
            a connection that breaks, after the time that ``Retry-After`` asks for and at least an exponential backoff.
        options: of ``httpx.Client``, such as ``auth``, ``verify``, or ``headers={"X-API-Key": KEY}``.

    All methods raise the errors of ``moleflow.client``, which derive from ``ClientError``.
    """

    def __init__(
        self, url: str, *, key: str | None = None, deadline: float | None = 60.0, retries: int = 5, **options: Any
    ) -> None:
        self._deadline, self._retries = deadline, retries
        self._http = httpx.Client(base_url=service_url(url), **options)
        self._http.headers.update(key_headers(key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def predict(
        self,
        image: Image,
        *,
        task: str | None = None,
        false_alarm_rate: float | None = None,
        map: MapChoice = "none",
        map_size: MapSize = "model",
    ) -> PredictionResponse:
        """The prediction for an image: a path, the bytes of a file, or pixels.

        ``task`` names the product and skips routing; ``decode_map`` turns the map into an array.
        """
        call = predict_call(image, task=task, false_alarm_rate=false_alarm_rate, map=map, map_size=map_size)
        return read(PredictionResponse, self._send(call))

    def predict_batch(
        self,
        images: Sequence[Image],
        *,
        task: str | None = None,
        false_alarm_rate: float | None = None,
        map: MapChoice = "none",
        map_size: MapSize = "model",
    ) -> list[ImageResult]:
        """The predictions for several images in one request, in their order; each may be an error instead."""
        call = batch_call(images, task=task, false_alarm_rate=false_alarm_rate, map=map, map_size=map_size)
        return read(BatchResponse, self._send(call)).results

    def predict_folder(
        self, folder: str | os.PathLike[str], *, concurrency: int = 4, **options: Any
    ) -> Iterator[FolderResult]:
        """The predictions for all images below a folder, in natural order; each may be an error instead.

        At most ``concurrency`` requests run at a time, and twice as many images are in memory. ``options`` are those of
        ``predict``.
        """
        waiting = deque[Future[FolderResult]]()
        with ThreadPoolExecutor(concurrency, "predict") as pool:
            try:
                for path, problem in images_below(Path(folder)):
                    waiting.append(pool.submit(self._one, path, problem, options))
                    if len(waiting) >= 2 * concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for each in waiting:
                    each.cancel()

    def tasks(self) -> TasksResponse:
        """The learned products and the checkpoint."""
        return read(TasksResponse, self._send(Call("GET", "/tasks")))

    def feedback(self, id: str, verdict: Literal["good", "defect"], *, task: str | None = None) -> FeedbackResponse:
        """Tell what a recent answer's image really shows; ``id`` is the answer's, ``task`` the true product if it
        named another one or none. The image is kept, and joins the product's good ones if it is good."""
        return read(FeedbackResponse, self._send(feedback_call(id, verdict, task)))

    def teach(self, task: str, images: Iterable[Image]) -> list[TeachResult]:
        """Add good images to those that a product is learned from: what became of each, in order.

        One that the service cannot use has an ``error``, and costs no other. Sending the same ones again changes
        nothing."""
        results: list[TeachResult] = []
        for call in teach_calls(task, images):
            results += read(TeachResponse, self._send(call)).results
        return results

    def train(
        self,
        task: str,
        *,
        epochs: int | None = None,
        wait: bool = True,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """Have a product learned from its good images, or learned again; the job.

        ``epochs`` are those of each fit. With ``wait`` the job has ended: it has learned the product, else this raises
        ``JobFailedError``. ``on_progress`` is called with the job now and then meanwhile."""
        job = read(Job, self._send(train_call(task, epochs)))
        while wait and not has_ended(job):
            time.sleep(POLL_SECONDS)
            job = self.job(job.id)
            if on_progress is not None:
                on_progress(job)
        return checked(job) if wait else job

    def job(self, id: str) -> Job:
        """A job, as it is now."""
        return read(Job, self._send(job_call(id)))

    def cancel(self, id: str) -> Job:
        """Cancel a job; the checkpoint stays as it was."""
        return read(Job, self._send(job_call(id, "DELETE")))

    def ready(self) -> ReadyResponse:
        """What is served. Waits until the service is ready, as all methods do; raises ``BusyError`` if it is not."""
        return read(ReadyResponse, self._send(Call("GET", "/health/ready")))

    def _one(self, path: Path, problem: ClientError | None, options: dict[str, Any]) -> FolderResult:
        try:
            if problem is not None:
                raise problem
            return FolderResult(path, self.predict(path, **options), None)
        except ClientError as error:
            return FolderResult(path, None, error)

    def _send(self, call: Call) -> httpx.Response:
        attempts = Attempts(self._retries, self._deadline)
        while True:
            try:
                response = self._http.request(call.method, call.path, timeout=attempts.remaining(), **call.options)
                return check(response)
            except httpx.TransportError as error:
                failed: ClientError = unreachable(self._http.base_url, error)
            except ClientError as error:
                failed = error
            time.sleep(attempts.delay_after(failed))
