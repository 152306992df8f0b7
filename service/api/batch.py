"""``POST /predict/batch``: many images in one request, answered one by one.

The response is sent while later images are still being predicted: only a few images of a request are in progress at a
time (``moleflow.service.engine.admission``), so neither it nor its answers fill the queue or the memory.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moleflow.service.api.accept import choose_media_type
from moleflow.service.api.body import read_body
from moleflow.service.api.deadline import deadline_of
from moleflow.service.api.disconnect import unless_disconnected
from moleflow.service.api.form import FormFile, file_too_large
from moleflow.service.api.observing import exchange_of
from moleflow.service.api.options import BatchOptions, combine_options
from moleflow.service.api.upload import Uploads, read_uploads
from moleflow.service.connections.sending import held_until_sent
from moleflow.service.engine.budget import Account
from moleflow.service.engine.deadline import Deadline
from moleflow.service.engine.engine import Engine
from moleflow.service.metrics import Metrics
from moleflow.service.problems import problem_of
from moleflow.service.responses.render import MEDIA_TYPES, ResponseFormat
from moleflow.service.settings import Settings

__all__ = ["respond_to_many"]

_JSON = MEDIA_TYPES[0]

Pieces = tuple[bytes | memoryview, ...]


async def respond_to_many(request: Request, engine: Engine, settings: Settings, metrics: Metrics) -> Response:
    """The response to a request with many images. Raises errors of the request; those of an image are answers."""
    query = request.query_params.multi_items()
    options, deadline = combine_options(query, (), BatchOptions), deadline_of(request, settings)
    if choose_media_type(", ".join(request.headers.getlist("accept")), (_JSON,)) is None:
        raise HTTPException(406, f"Accept must allow {_JSON}, the only response format for many images.")
    engine.check_task(options.task)
    engine.check_capacity()
    held = held_until_sent(request)
    account = held.enter_context(
        engine.batch_upload_budget.account(within=held.enter_context(engine.upload_budget.account()))
    )
    async with deadline.enforced():
        uploads = await _read(request, settings, metrics, account)
    options = combine_options(query, uploads.fields, BatchOptions)
    engine.check_task(options.task)
    in_progress = held.enter_context(engine.admit_many())
    # Maps of the image's size may take the whole budget for responses; an image that waits for it must hold none.
    wanted = 1 if options.map != "none" and options.map_size == "image" else in_progress
    work = _Work(request, engine, settings, account, options, deadline)
    return _Answers(_answers(work, uploads.files, wanted))


async def _read(request: Request, settings: Settings, metrics: Metrics, account: Account) -> Uploads:
    with metrics.uploads_in_progress.track_inprogress():
        async with aclosing(read_body(request, account, settings.upload_timeout_seconds)) as chunks:
            return await read_uploads(
                request.headers,
                chunks,
                max_files=settings.max_request_images,
                max_file_bytes=settings.max_upload_bytes,
                max_bytes=settings.max_request_bytes,
            )


class _Work:
    """Predicts the images of one request."""

    def __init__(
        self,
        request: Request,
        engine: Engine,
        settings: Settings,
        account: Account,
        options: BatchOptions,
        deadline: Deadline,
    ) -> None:
        self.request, self._engine, self._settings = request, engine, settings
        self._account, self._options, self._deadline = account, options, deadline

    async def answer(self, file: FormFile, responses: Account) -> Pieces:
        """The entry of one image in the response; never raises but when it is cancelled."""
        try:
            pieces: Pieces = (b'"prediction":', *await self._predict(file, responses), b',"error":null')
        except Exception as error:
            problem = problem_of(self.request, error)
            pieces = (b'"prediction":null,"error":', problem.model_dump_json().encode())
        return (b'{"file":', json.dumps(file.name).encode(), b",", *pieces, b"}")

    async def _predict(self, file: FormFile, responses: Account) -> Pieces:
        try:
            if file.is_too_large:
                raise file_too_large(self._settings.max_upload_bytes)
            async with self._deadline.enforced(), self._engine.admit_one_of_many():
                data = await asyncio.to_thread(b"".join, file.pieces)
                response = await self._engine.predict(
                    data,
                    task=self._options.task,
                    false_alarm_rate=self._options.false_alarm_rate,
                    response_format=ResponseFormat(_JSON, self._options.map, self._options.map_size),
                    account=responses,
                    identifier=exchange_of(self.request).new_id(),
                    deadline=self._deadline,
                )
                return response.pieces
        finally:
            file.pieces.clear()
            self._account.give_back(file.size)

    def start(self, file: FormFile) -> "tuple[asyncio.Task[Pieces], ExitStack]":
        """The answer to one image in the making, and its memory, to be released once it is sent."""
        held = ExitStack()
        responses = held.enter_context(self._engine.response_budget.account())
        return asyncio.create_task(self.answer(file, responses)), held


async def _answers(work: _Work, files: Sequence[FormFile], in_progress: int) -> AsyncGenerator[Pieces, None]:
    """The answers in the order of the images. An answer's memory is released when the next one is asked for."""
    waiting, running = deque(files), deque[tuple["asyncio.Task[Pieces]", ExitStack]]()
    try:
        while waiting or running:
            while waiting and len(running) < in_progress:
                running.append(work.start(waiting.popleft()))
            task, held = running[0]
            yield await unless_disconnected(work.request, task)
            running.popleft()
            held.close()
    finally:
        for task, _ in running:
            task.cancel()
        await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
        for _, held in running:
            held.close()


class _Answers(Response):
    """A response whose length is not known when it begins."""

    def __init__(self, answers: AsyncGenerator[Pieces, None]) -> None:
        super().__init__(None, media_type=_JSON)
        del self.headers["content-length"]
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        separator = b'{"results":['
        with contextlib.suppress(ClientDisconnect):  # too late for another response
            async with aclosing(self._answers) as answers:
                async for pieces in answers:
                    for piece in (separator, *pieces):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    separator = b","
            await send({"type": "http.response.body", "body": b"]}", "more_body": False})
