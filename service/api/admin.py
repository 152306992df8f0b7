"""Routes that change what is served, and the one place that decides who may use them."""

import ipaddress

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from moleflow.service.api import openapi
from moleflow.service.engine.engine import Engine
from moleflow.service.errors import NotAllowedError
from moleflow.service.responses.schemas import TasksResponse
from moleflow.service.settings import Settings

__all__ = ["check_administrator", "router"]

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers of proxies: the client is another one than the connection's, perhaps on another machine."""


def check_administrator(request: Request) -> None:
    """Raise ``NotAllowedError`` unless the client may administer the service (``Settings.admin``)."""
    settings: Settings = request.app.state.settings
    if settings.admin == "any" or (settings.admin == "local" and _is_local(request)):
        return
    who = "nobody may" if settings.admin == "none" else "only programs on the service's own machine may"
    raise NotAllowedError(
        f"{request.method} {request.url.path} changes what is served, which {who} do. MOLEFLOW_ADMIN (--admin) decides "
        "who may; a changed checkpoint file is served without any request."
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


@router.post("/admin/reload", response_model=TasksResponse, **openapi.RELOAD)
async def reload(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    predictor = await engine.reloader.reload()
    served = TasksResponse(checkpoint=predictor.checkpoint, tasks=predictor.tasks)
    return Response(served.model_dump_json(), media_type="application/json")
