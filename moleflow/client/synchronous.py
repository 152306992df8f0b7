"""The client for ordinary programs."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

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
from moleflow.service.responses.schemas import (
    BatchResponse,
    ImageResult,
    PredictionResponse,
    ReadyResponse,
    TasksResponse,
)

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
