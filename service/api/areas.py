"""Routes that set and clear the inspected area of a product."""

import asyncio
from pathlib import Path

import numpy as np
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from moleflow.model.verdict.area import Outlines
from moleflow.model.verdict.outlines import bright
from moleflow.service.api import openapi_changes as openapi
from moleflow.service.api.admin import change_checkpoint, check_administrator
from moleflow.service.api.body import read_body, read_json
from moleflow.service.api.upload import read_upload
from moleflow.service.engine.budget import Account
from moleflow.service.engine.engine import Engine
from moleflow.service.responses.schemas import TasksResponse
from moleflow.service.settings import Settings
from moleflow.service.teaching.teaching import Teaching

__all__ = ["router"]

MAX_OUTLINES_BYTES = 256 * 1024
"""The most corners that a product may have, with all their digits, indented."""

_JSON = ("", "application/json")
"""Media types of polygons; anything else is a mask image."""

router = APIRouter(dependencies=[Depends(check_administrator)])


@router.put("/tasks/{name}/area", response_model=TasksResponse, **openapi.SET_AREA)
async def set_area(request: Request, name: str) -> Response:
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    with engine.upload_budget.account() as account:
        if media_type in _JSON:
            seconds = settings.upload_timeout_seconds
            drawing = await read_json(request, Outlines, account, seconds, max_bytes=MAX_OUTLINES_BYTES)
            return await _changed(request, name, drawing)
        mask = bright(await engine.decode(await _read_mask(request, settings, account)))
        return await _changed(request, name, mask)


@router.delete("/tasks/{name}/area", response_model=TasksResponse, **openapi.CLEAR_AREA)
async def clear_area(request: Request, name: str) -> Response:
    return await _changed(request, name, None)


async def _read_mask(request: Request, settings: Settings, account: Account) -> bytes:
    chunks = read_body(request, account, settings.upload_timeout_seconds)
    return (await read_upload(request.headers, chunks, settings.max_upload_bytes)).data


async def _changed(request: Request, name: str, drawing: Outlines | np.ndarray | None) -> Response:
    teaching: Teaching = request.app.state.teaching
    await asyncio.to_thread(teaching.check_free, name)
    return await change_checkpoint(request, lambda path: _set(path, name, drawing), {})


def _set(path: Path, name: str, drawing: Outlines | np.ndarray | None) -> None:
    from moleflow.model.store.areas import set_area  # needs PyTorch

    set_area(path, name, drawing)
