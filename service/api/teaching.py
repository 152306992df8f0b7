"""Routes for teaching: the good images of a product, and the request to learn from them."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from moleflow.model.images.formats import image_format
from moleflow.service.api import openapi_teaching as openapi
from moleflow.service.api.admin import audit, check_teacher
from moleflow.service.api.body import read_body
from moleflow.service.api.disconnect import unless_disconnected
from moleflow.service.api.form import FormFile, file_too_large
from moleflow.service.api.upload import read_files
from moleflow.service.engine.budget import Account
from moleflow.service.engine.engine import Engine
from moleflow.service.problems import problem_of
from moleflow.service.responses.schemas import ImageSize
from moleflow.service.responses.teaching import Job, TaughtImagesResponse, TeachResponse, TeachResult
from moleflow.service.settings import Settings
from moleflow.service.teaching.archive import archived_files, is_archive
from moleflow.service.teaching.teaching import Teaching

__all__ = ["router"]

_MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WebP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
}

router = APIRouter(dependencies=[Depends(check_teacher)])


@router.post("/tasks/{name}/images", response_model=TeachResponse, **openapi.TEACH)
async def teach(request: Request, name: str) -> Response:
    engine, settings, teaching = _engine(request), _settings(request), _teaching(request)
    teaching.check()
    product = teaching.name_of(name)
    engine.check_ready()
    with (
        engine.upload_budget.account() as whole,
        engine.batch_upload_budget.account(within=whole) as account,
        request.app.state.metrics.uploads_in_progress.track_inprogress(),
    ):
        async with aclosing(read_body(request, account, settings.upload_timeout_seconds)) as chunks:
            files = await read_files(
                request.headers,
                chunks,
                max_files=settings.max_request_images,
                max_bytes=settings.max_request_bytes,
            )
        results = await unless_disconnected(request, _keep_all(request, product, files, account))
    await audit(request)
    images = len((await asyncio.to_thread(teaching.images.listing, product)).images)
    return _json(TeachResponse(task=product, results=results, images=images))


@router.get("/tasks/{name}/images", response_model=TaughtImagesResponse, **openapi.IMAGES)
async def images(request: Request, name: str) -> Response:
    teaching = _teaching(request)
    return _json(await asyncio.to_thread(teaching.images.listing, teaching.name_of(name)))


@router.delete("/tasks/{name}/images", response_model=TaughtImagesResponse, **openapi.FORGET_ALL)
async def forget_all(request: Request, name: str) -> Response:
    return await _forget(request, name, None)


@router.get("/tasks/{name}/images/{id}", **openapi.IMAGE)
async def image(request: Request, name: str, id: str) -> Response:
    teaching = _teaching(request)
    path = await asyncio.to_thread(teaching.images.find, teaching.name_of(name), id)
    with path.open("rb") as file:
        kind = image_format(file.read(16))
    return FileResponse(path, media_type=_MEDIA_TYPES.get(kind or "", "application/octet-stream"))


@router.delete("/tasks/{name}/images/{id}", response_model=TaughtImagesResponse, **openapi.FORGET)
async def forget(request: Request, name: str, id: str) -> Response:
    return await _forget(request, name, id)


@router.post("/tasks/{name}:train", status_code=202, response_model=Job, **openapi.TRAIN)
async def train(
    request: Request,
    name: str,
    epochs: Annotated[
        int | None, Query(ge=1, le=1000, description="epochs of each fit; the preset's by default")
    ] = None,
) -> Response:
    job = await _teaching(request).learn(name, epochs)
    await audit(request)
    return Response(job.model_dump_json(), 202, {"Location": f"jobs/{job.id}"}, "application/json")


async def _forget(request: Request, name: str, identifier: str | None) -> Response:
    teaching = _teaching(request)
    product = teaching.name_of(name)
    await asyncio.to_thread(teaching.images.remove, product, identifier)
    await audit(request)
    return _json(await asyncio.to_thread(teaching.images.listing, product))


async def _keep_all(request: Request, product: str, files: tuple[FormFile, ...], account: Account) -> list[TeachResult]:
    """What becomes of each file. An archive that cannot be used is one bad file."""
    results = []
    for file in files:
        data = await asyncio.to_thread(b"".join, file.pieces)
        file.pieces.clear()
        try:
            async with aclosing(_contents(request, file.name, data)) as contents:
                async for name, content in contents:
                    results.append(await _keep(request, product, name, content))
        except Exception as error:
            results.append(_refused(request, file.name, error))
        account.give_back(len(data))
    return results


async def _contents(request: Request, name: str, data: bytes) -> AsyncGenerator[tuple[str, bytes | Exception], None]:
    """The file itself, or those of an archive, each decompressed in a thread once it is its turn."""
    most = _settings(request).max_upload_bytes
    if not is_archive(data):
        yield name, file_too_large(most) if len(data) > most else data
        return
    entries: Iterator[tuple[str, bytes | Exception]] = archived_files(data, most)
    while (entry := await asyncio.to_thread(next, entries, None)) is not None:
        yield entry


async def _keep(request: Request, product: str, name: str, content: bytes | Exception) -> TeachResult:
    teaching = _teaching(request)
    try:
        if isinstance(content, Exception):
            raise content
        async with teaching.checking:
            width, height = await _engine(request).measure(content)
        identifier, is_known = await asyncio.to_thread(teaching.images.keep, product, content)
    except Exception as error:
        return _refused(request, name, error)
    size = ImageSize(width=width, height=height)
    return TeachResult(file=_shown(name), id=identifier, duplicate=is_known, size=size, error=None)


def _refused(request: Request, name: str, error: Exception) -> TeachResult:
    problem = problem_of(request, error)
    return TeachResult(file=_shown(name), id=None, duplicate=False, size=None, error=problem)


def _shown(name: str) -> str:
    """A file's name as valid text; an archive may hold any bytes."""
    return name.encode("utf-8", "replace").decode()


def _engine(request: Request) -> Engine:
    return request.app.state.engine


def _settings(request: Request) -> Settings:
    return request.app.state.settings


def _teaching(request: Request) -> Teaching:
    return request.app.state.teaching


def _json(model: TeachResponse | TaughtImagesResponse) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
