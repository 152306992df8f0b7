"""The Open Inference Protocol, version 2, with its extension for binary tensors, below ``/v2``.

The model ``moleflow`` picks the product; each product is a model as well, which skips that. Either all images of a
request are answered or none. Errors have the protocol's form (``OipErrors``).
"""

import asyncio
import json
import math
from contextlib import ExitStack, aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import moleflow
from moleflow.model.errors import ImageTooLargeError
from moleflow.service.api.body import read_body
from moleflow.service.api.client_limits import limit_client
from moleflow.service.api.deadline import deadline_of
from moleflow.service.api.disconnect import unless_disconnected
from moleflow.service.api.observing import exchange_of, note_finding
from moleflow.service.api.oip_request import INPUT, LENGTH_HEADER, InferRequest, max_body_bytes, parse_request
from moleflow.service.api.oip_response import MAP, OUTPUTS, Answer, make_response, wanted_outputs
from moleflow.service.connections.sending import PiecesResponse, held_until_sent
from moleflow.service.engine.budget import Account
from moleflow.service.engine.deadline import Deadline
from moleflow.service.engine.engine import Engine
from moleflow.service.errors import DeadlineError, NotReadyError
from moleflow.service.problems import MEDIA_TYPE, error_response
from moleflow.service.responses.render import TENSOR_TYPE, ResponseFormat
from moleflow.service.settings import Settings

__all__ = ["OipErrors", "router"]

_MODEL = "moleflow"
"""The model that picks the product."""

_PREFIX = "/v2"

_SMALL_BYTES = 1024**2
"""Maps up to this size need not wait for memory."""

_BYTES_IN_JSON = 8
"""Times the memory of a map that making JSON of it takes."""

router = APIRouter(prefix=_PREFIX, include_in_schema=False)


@router.get("")
async def server() -> Response:
    return JSONResponse({"name": _MODEL, "version": moleflow.__version__, "extensions": ["binary_tensor_data"]})


@router.get("/health/live")
async def live(request: Request) -> Response:
    _engine(request).check_live()
    return JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    _engine(request).check_ready()
    return JSONResponse({"ready": True})


@router.get("/models/{name}/ready")
async def model_ready(request: Request, name: str) -> Response:
    engine = _engine(request)
    engine.check_ready()
    task = _task(engine, name)
    if task in engine.health.damaged:
        raise NotReadyError(f"The expert of product {task!r} is damaged, so its images cannot be scored.")
    return JSONResponse({"name": name, "ready": True})


@router.get("/models/{name}")
async def model(request: Request, name: str) -> Response:
    engine = _engine(request)
    _task(engine, name)
    side = engine.predictor.preprocessing.image_size
    outputs = [{"name": key, "datatype": datatype, "shape": [-1]} for key, (datatype, _) in OUTPUTS.items()]
    return JSONResponse(
        {
            "name": name,
            "platform": _MODEL,
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [*outputs, {"name": MAP, "datatype": "FP32", "shape": [-1, side, side]}],
        }
    )


@router.post("/models/{name}/infer")
async def infer(request: Request, name: str) -> Response:
    limit_client(request)
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    deadline = deadline_of(request, settings)
    task = _task(engine, name)
    engine.check_capacity()
    held = held_until_sent(request)
    async with deadline.enforced():
        with (
            engine.upload_budget.account() as uploads,
            engine.batch_upload_budget.account(within=uploads) as account,
        ):
            body = await _read(request, settings, account)
            wanted = await asyncio.to_thread(parse_request, body, request.headers.get(LENGTH_HEADER), settings)
            work = _Work(request, engine, wanted, task, deadline)
            await work.wait_for_memory(held)
            try:
                answers = await unless_disconnected(request, work.answers(held))
            except _ImageError as failed:
                return error_response(request, failed.error, f"Image {failed.number} of {len(wanted.images)}")
            response = await asyncio.to_thread(make_response, name, wanted, answers, work.side)
    if len(answers) == 1:
        note_finding(request, answers[0].finding)
    return PiecesResponse(response.pieces, response.media_type, response.headers)


class _ImageError(Exception):
    """One of several images failed; they are counted from 1."""

    def __init__(self, number: int, error: Exception) -> None:
        self.number, self.error = number, error
        super().__init__(number)


class _Work:
    """Predicts the images of one request."""

    def __init__(
        self, request: Request, engine: Engine, wanted: InferRequest, task: str | None, deadline: Deadline
    ) -> None:
        self._request, self._engine, self._wanted = request, engine, wanted
        self._task, self._deadline = task, deadline
        self._maps = {name: is_binary for name, is_binary in wanted_outputs(wanted) if name == MAP}
        self.side = engine.predictor.preprocessing.image_size

    async def wait_for_memory(self, held: ExitStack) -> None:
        """Wait until there is memory for the maps; before any image takes a place in the queue."""
        size = len(self._wanted.images) * self.side**2 * 4 * (1 if self._maps.get(MAP, True) else _BYTES_IN_JSON)
        if self._maps and size > _SMALL_BYTES:
            await held.enter_context(self._engine.response_budget.account()).wait_for(size)

    async def answers(self, held: ExitStack) -> list[Answer]:
        """The answers in order. Raises ``_ImageError`` for one of several images, and as ``Engine.predict``."""
        count = len(self._wanted.images)
        if count == 1:
            held.enter_context(self._engine.admit())
            return [await self._answer(0, exchange_of(self._request).answer_id())]
        in_progress = asyncio.Semaphore(held.enter_context(self._engine.admit_many()))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one_of_many(index, in_progress)) for index in range(count)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one_of_many(self, index: int, in_progress: asyncio.Semaphore) -> Answer:
        async with in_progress:
            try:
                async with self._engine.admit_one_of_many():
                    return await self._answer(index, exchange_of(self._request).new_id())
            except DeadlineError:
                raise
            except Exception as error:
                raise _ImageError(index + 1, error) from error

    async def _answer(self, index: int, identifier: str) -> Answer:
        response = await self._engine.predict(
            await asyncio.to_thread(self._wanted.file, index),
            task=self._task,
            false_alarm_rate=self._wanted.false_alarm_rate,
            response_format=ResponseFormat(TENSOR_TYPE, "npy" if self._maps else "none", "model"),
            identifier=identifier,
            deadline=self._deadline,
        )
        if not response.pieces:
            return Answer(identifier, response.finding)
        values = np.frombuffer(response.pieces[0], np.float32)
        side = math.isqrt(values.size)
        return Answer(identifier, response.finding, values.reshape(side, side))


class OipErrors:
    """Turns problem documents below ``/v2`` into the protocol's form of errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_below(scope["path"].removeprefix(scope.get("root_path", ""))):
            await self._app(scope, receive, send)
            return
        held: list[Message] = []
        body = b""

        async def send_as_error(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                if dict(message["headers"]).get(b"content-type") == MEDIA_TYPE.encode():
                    held.append(message)
                    return
            elif held:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await _send_error(held.pop(), body, send)
                return
            await send(message)

        await self._app(scope, receive, send_as_error)


async def _send_error(start: Message, body: bytes, send: Send) -> None:
    """Send a problem document as an error of the protocol."""
    error = json.dumps({"error": json.loads(body)["detail"]}).encode()
    dropped = (b"content-type", b"content-length")
    headers = [(name, value) for name, value in start["headers"] if name not in dropped]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(error)).encode())]
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": error})


def _is_below(path: str) -> bool:
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def _task(engine: Engine, name: str) -> str | None:
    """The product that a model stands for; ``None`` for the one that picks it. Raises ``UnknownTaskError``."""
    return None if name == _MODEL else engine.check_task(name)


async def _read(request: Request, settings: Settings, account: Account) -> bytes:
    """The body, within its limits."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"Content-Encoding {encoding[:40]!r} is not supported; send the body unencoded.")
    most, pieces, size = max_body_bytes(settings), list[bytes](), 0
    metrics: Any = request.app.state.metrics
    with metrics.uploads_in_progress.track_inprogress():
        async with aclosing(read_body(request, account, settings.upload_timeout_seconds)) as chunks:
            async for chunk in chunks:
                pieces.append(chunk)
                size += len(chunk)
                if size > most:
                    raise ImageTooLargeError(f"The request has more than {most:,} bytes; send fewer images in one.")
    return await asyncio.to_thread(b"".join, pieces)


def _engine(request: Request) -> Engine:
    return request.app.state.engine
