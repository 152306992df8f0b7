"""The client for asyncio."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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

__all__ = ["AsyncClient"]


class AsyncClient:
    """``moleflow.client.Client`` with the same arguments and methods for asyncio; the deadline is exact.

    Use it in an ``async with`` block, or close it. To be used from one event loop.
    """

    def __init__(
        self, url: str, *, key: str | None = None, deadline: float | None = 60.0, retries: int = 5, **options: Any
    ) -> None:
        self._deadline, self._retries = deadline, retries
        self._http = httpx.AsyncClient(base_url=service_url(url), **options)
        self._http.headers.update(key_headers(key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def predict(
        self,
        image: Image,
        *,
        task: str | None = None,
        false_alarm_rate: float | None = None,
        map: MapChoice = "none",
        map_size: MapSize = "model",
    ) -> PredictionResponse:
        """As ``Client.predict``. Files are read and pixels encoded in a thread."""
        options = {"task": task, "false_alarm_rate": false_alarm_rate, "map": map, "map_size": map_size}
        call = await asyncio.to_thread(predict_call, image, **options)
        return read(PredictionResponse, await self._send(call))

    async def predict_batch(
        self,
        images: Sequence[Image],
        *,
        task: str | None = None,
        false_alarm_rate: float | None = None,
        map: MapChoice = "none",
        map_size: MapSize = "model",
    ) -> list[ImageResult]:
        """As ``Client.predict_batch``."""
        options = {"task": task, "false_alarm_rate": false_alarm_rate, "map": map, "map_size": map_size}
        call = await asyncio.to_thread(batch_call, images, **options)
        return read(BatchResponse, await self._send(call)).results

    async def predict_folder(
        self, folder: str | os.PathLike[str], *, concurrency: int = 4, **options: Any
    ) -> AsyncIterator[FolderResult]:
        """As ``Client.predict_folder``."""
        free = asyncio.Semaphore(concurrency)
        waiting = deque[asyncio.Task[FolderResult]]()
        found = images_below(Path(folder))
        try:
            while (image := await asyncio.to_thread(next, found, None)) is not None:
                waiting.append(asyncio.create_task(self._one(*image, options, free)))
                if len(waiting) >= 2 * concurrency:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def tasks(self) -> TasksResponse:
        """As ``Client.tasks``."""
        return read(TasksResponse, await self._send(Call("GET", "/tasks")))

    async def feedback(
        self, id: str, verdict: Literal["good", "defect"], *, task: str | None = None
    ) -> FeedbackResponse:
        """As ``Client.feedback``."""
        return read(FeedbackResponse, await self._send(feedback_call(id, verdict, task)))

    async def teach(self, task: str, images: Iterable[Image]) -> list[TeachResult]:
        """As ``Client.teach``."""
        results: list[TeachResult] = []
        calls = teach_calls(task, images)
        while (call := await asyncio.to_thread(next, calls, None)) is not None:
            results += read(TeachResponse, await self._send(call)).results
        return results

    async def train(
        self,
        task: str,
        *,
        epochs: int | None = None,
        wait: bool = True,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """As ``Client.train``."""
        job = read(Job, await self._send(train_call(task, epochs)))
        while wait and not has_ended(job):
            await asyncio.sleep(POLL_SECONDS)
            job = await self.job(job.id)
            if on_progress is not None:
                on_progress(job)
        return checked(job) if wait else job

    async def job(self, id: str) -> Job:
        """As ``Client.job``."""
        return read(Job, await self._send(job_call(id)))

    async def cancel(self, id: str) -> Job:
        """As ``Client.cancel``."""
        return read(Job, await self._send(job_call(id, "DELETE")))

    async def ready(self) -> ReadyResponse:
        """As ``Client.ready``."""
        return read(ReadyResponse, await self._send(Call("GET", "/health/ready")))

    async def _one(
        self, path: Path, problem: ClientError | None, options: dict[str, Any], free: asyncio.Semaphore
    ) -> FolderResult:
        try:
            if problem is not None:
                raise problem
            async with free:
                return FolderResult(path, await self.predict(path, **options), None)
        except ClientError as error:
            return FolderResult(path, None, error)

    async def _send(self, call: Call) -> httpx.Response:
        attempts = Attempts(self._retries, self._deadline)
        while True:
            try:
                async with asyncio.timeout(attempts.remaining()):
                    return check(await self._http.request(call.method, call.path, timeout=None, **call.options))
            except (httpx.TransportError, TimeoutError) as error:
                failed: ClientError = unreachable(self._http.base_url, error)
            except ClientError as error:
                failed = error
            await asyncio.sleep(attempts.delay_after(failed))
