"""Routes that change what is served, and the one place that decides who may use them."""

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from moleflow.model.errors import CheckpointError, ConfigurationError, TaskError, UnknownTaskError
from moleflow.model.exported.folder import is_exported
from moleflow.service.api import openapi_changes as openapi
from moleflow.service.api.body import read_json
from moleflow.service.api.observing import exchange_of
from moleflow.service.api.processes import reload_all
from moleflow.service.audit import Change
from moleflow.service.engine.engine import Engine
from moleflow.service.errors import NotAllowedError, NotChangedError
from moleflow.service.responses.schemas import TasksResponse
from moleflow.service.settings import Settings
from moleflow.service.teaching.teaching import Teaching

__all__ = ["audit", "change_checkpoint", "check_administrator", "check_teacher", "router"]

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers of proxies: the client is another one than the connection's, perhaps on another machine."""


def check_administrator(request: Request) -> None:
    """Raise ``NotAllowedError`` unless the client may administer the service (``Settings.admin``).

    With API keys they decide, and have done so already (``moleflow.service.api.keys``).
    """
    settings: Settings = request.app.state.settings
    has_key = settings.api_keys is not None and settings.admin != "none"
    if has_key or settings.admin == "any" or (settings.admin == "local" and _is_local(request)):
        return
    who = "nobody may" if settings.admin == "none" else "only programs on the service's own machine may"
    raise NotAllowedError(
        f"{request.method} {request.url.path} changes what is served, which {who} do. MOLEFLOW_ADMIN (--admin) decides "
        "who may; a changed checkpoint file is served without any request."
    )


def check_teacher(request: Request) -> None:
    """Raise ``NotAllowedError`` unless the client may teach: with API keys they decide, without them as
    ``check_administrator``."""
    if request.app.state.settings.api_keys is None:
        check_administrator(request)


async def audit(request: Request) -> None:
    """Record who changed something that is not served, such as what is taught."""
    await asyncio.to_thread(_engine(request).audit.record, _change_by(request, {}))


def _change_by(request: Request, what: Mapping[str, Any]) -> Change:
    """A request as a change, for the audit log; ``what`` it asks for besides its path."""
    return Change(
        f"{request.method} {request.url.path}",
        client=getattr(request.state, "client", None),
        address="" if request.client is None else request.client.host,
        request_id=exchange_of(request).request_id,
        what=what,
    )


def _is_local(request: Request) -> bool:
    """Whether the request comes from this machine, and from no proxy on it."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


router = APIRouter(dependencies=[Depends(check_administrator)])


class ProductChange(BaseModel):
    """What to change of a product; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="its new name", examples=["bottle"])
    hidden: bool | None = Field(None, description="whether it takes no part in prediction")


@router.post("/admin/reload", response_model=TasksResponse, **openapi.RELOAD)
async def reload(request: Request) -> Response:
    return await _served_anew(request, {})


@router.delete("/tasks/{name}", response_model=TasksResponse, **openapi.REMOVE)
async def remove(request: Request, name: str, hide: bool = False) -> Response:
    await asyncio.to_thread(_teaching(request).check_free, name)
    return await change_checkpoint(request, lambda path: _remove(path, name, hide=hide), {"hide": hide})


@router.patch("/tasks/{name}", response_model=TasksResponse, **openapi.CHANGE)
async def change(request: Request, name: str) -> Response:
    engine, settings = _engine(request), _settings(request)
    with engine.upload_budget.account() as account:
        wanted = await read_json(request, ProductChange, account, settings.upload_timeout_seconds)
    teaching = _teaching(request)
    await asyncio.to_thread(teaching.check_free, name, renaming_to=wanted.name)
    response = await change_checkpoint(
        request, lambda path: _change(path, name, wanted), wanted.model_dump(exclude_unset=True)
    )
    if wanted.name is not None:
        await asyncio.to_thread(teaching.rename, name, wanted.name)
    return response


def _remove(path: Path, name: str, *, hide: bool) -> None:
    from moleflow.model.store.editing import hide_products, remove_products  # needs PyTorch

    if hide:
        hide_products(path, [name])
    else:
        remove_products(path, [name])


def _change(path: Path, name: str, wanted: ProductChange) -> None:
    from moleflow.model.store.editing import change_product  # needs PyTorch

    change_product(path, name, new_name=wanted.name, hidden=wanted.hidden)


async def change_checkpoint(request: Request, edit: Callable[[Path], None], what: Mapping[str, Any]) -> Response:
    """Edit the checkpoint file and serve it; ``what`` the request asks for goes to the audit log.

    Raises ``UnknownTaskError``, ``NotChangedError`` and ``ReloadError``.
    """
    _engine(request).check_ready()
    path = _settings(request).checkpoint
    if is_exported(path):
        raise NotChangedError("An exported folder is served; change its checkpoint, and export that again.")
    try:
        await asyncio.to_thread(edit, path)
    except UnknownTaskError:
        raise
    except (TaskError, CheckpointError, ConfigurationError) as error:
        # The folder of the checkpoint is nobody's business.
        raise NotChangedError(str(error).replace(str(path), path.name)) from error
    return await _served_anew(request, what)


async def _served_anew(request: Request, what: Mapping[str, Any]) -> Response:
    """Load the checkpoint file again; the products that are served then."""
    predictor = await reload_all(_engine(request), request.app.state.link, _change_by(request, what))
    served = TasksResponse(checkpoint=predictor.checkpoint, tasks=predictor.tasks)
    return Response(served.model_dump_json(), media_type="application/json")


def _engine(request: Request) -> Engine:
    return request.app.state.engine


def _teaching(request: Request) -> Teaching:
    return request.app.state.teaching


def _settings(request: Request) -> Settings:
    return request.app.state.settings
