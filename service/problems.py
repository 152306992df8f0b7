"""Every error as a problem document (RFC 9457)."""

import http
import logging
import math
import uuid
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moleflow.model.errors import (
    ExpertError,
    ImageTooLargeError,
    MoLEFlowError,
    OverloadedError,
    UnknownTaskError,
    UnsupportedImageError,
)
from moleflow.service.errors import NotLiveError, NotReadyError, UnknownProductError

__all__ = ["MEDIA_TYPE", "STATUS_CLIENT_LEFT", "Problem", "add_problem_handlers", "problem_response"]

MEDIA_TYPE = "application/problem+json"
"""Media type of problem documents (RFC 9457, section 3)."""

STATUS_CLIENT_LEFT = 499
"""Noted, and never delivered, when a client leaves before its answer; the number is nginx's."""

_TYPE_PREFIX = "urn:moleflow:problem:"
"""What problem types begin with; they are names, not places to look up."""

_RETRY_NOT_READY_SECONDS = 5
"""What a client is told to wait while the model is being loaded: that takes seconds."""

_MAX_EXPLAINED, _MAX_QUOTED = 5, 200
"""How many problems of one request are explained, and how many characters of a wrong value are quoted."""

_logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong, and what to do about it (RFC 9457)."""

    type: str = Field(description="name of the kind of problem", examples=["urn:moleflow:problem:unsupported-image"])
    title: str = Field(description="the kind of problem in words", examples=["Not a readable image"])
    status: int = Field(description="the HTTP status", examples=[415])
    detail: str = Field(description="what was wrong this time, and what to do")
    instance: str = Field(description="name of this occurrence; the log has it too where the service is to blame")


_KINDS: dict[type[Exception], tuple[int, str, str]] = {
    UnsupportedImageError: (415, "unsupported-image", "Not a readable image"),
    ImageTooLargeError: (413, "image-too-large", "The image is too large"),
    UnknownProductError: (422, "unknown-product", "No learned product is in the image"),
    UnknownTaskError: (404, "unknown-task", "No such product was learned"),
    OverloadedError: (429, "overloaded", "Too many requests at this moment"),
    NotReadyError: (503, "not-ready", "The service takes no images at this moment"),
    NotLiveError: (503, "not-live", "The service needs a restart"),
}
"""Status, type and title of the errors that a request may meet; any other is the service's own fault."""


_STATUSES: dict[int, tuple[str, str]] = {
    400: ("malformed-request", "Not a request that can be read"),
    403: ("foreign-page", "Web pages of other origins may not ask this"),
    404: ("not-found", "There is nothing here"),
    405: ("method-not-allowed", "The method does not work here"),
    406: ("not-acceptable", "No such form of the answer"),
    408: ("upload-timeout", "The request took too long to arrive"),
    414: ("query-too-long", "The query is too long"),
    415: ("unsupported-body", "Not a kind of body that is read"),
    421: ("unknown-host", "The service is not called by this name"),
    422: ("invalid-request", "The request is not valid"),
    431: ("too-many-headers", "The request has too many header lines"),
}
"""Type and title of what routing and the reading of uploads refuse, by status."""


def problem_response(status: int, detail: str) -> Response:
    """The answer to a request that is refused with this status."""
    return _respond(status, *_STATUSES[status], detail)


def add_problem_handlers(app: FastAPI) -> None:
    """Let the app answer every error with a problem document."""
    app.add_exception_handler(MoLEFlowError, _on_known_error)
    app.add_exception_handler(StarletteHTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(ClientDisconnect, _on_client_left)
    app.add_middleware(_UnexpectedErrors)


async def _on_known_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ExpertError):
        return _respond_damaged(request, error)
    for kind in type(error).__mro__:
        if kind in _KINDS:
            status, slug, title = _KINDS[kind]
            return _respond(status, slug, title, str(error), headers=_retry_after(error))
    return _respond_failed(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What routing and the reading of uploads refuse."""
    assert isinstance(error, StarletteHTTPException)
    status, detail = error.status_code, error.detail
    slug, title = _STATUSES.get(status, (f"http-{status}", http.HTTPStatus(status).phrase))
    headers = dict(error.headers or {})
    if not isinstance(error, HTTPException):  # from the router, which knows no more than the status
        if status == http.HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {request.url.path}; /docs lists what there is."
        elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:
            methods = set(headers["Allow"].split(", "))
            # HEAD works wherever GET does, which the router does not know (moleflow.service.api.methods).
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
            detail = f"{request.method} does not work at {request.url.path}; use {headers['Allow']}."
    return _respond(status, slug, title, detail, headers=headers)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Options that are unknown or have a value that is not valid."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    detail = " ".join(_explain(problem) for problem in problems[:_MAX_EXPLAINED])
    if len(problems) > _MAX_EXPLAINED:
        detail += f" And {len(problems) - _MAX_EXPLAINED} more of this kind."
    return _respond(422, *_STATUSES[422], detail)


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=STATUS_CLIENT_LEFT)


class _UnexpectedErrors:
    """Answers whatever nobody foresaw. Starlette's own handler would answer too, but then raise the error again, upon
    which servers drop the connection that the client is about to use for its next request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def note_beginning(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, note_beginning)
        except Exception as error:
            if scope["type"] != "http" or has_begun:
                raise
            await _respond_failed(Request(scope), error)(scope, receive, send)


def _respond_failed(request: Request, error: Exception) -> Response:
    """A failure of the service itself: the log gets the cause, the client a name to ask about it by."""
    instance = _new_instance()
    _logger.error("%s %s failed (%s)", request.method, request.url.path, instance, exc_info=error)
    detail = "The service failed on this request. Nothing is known to be wrong with the request; try it again."
    return _respond(500, "internal-error", "The service failed", detail, instance=instance)


def _respond_damaged(request: Request, error: ExpertError) -> Response:
    """A product that cannot be judged until somebody mends the checkpoint. Where that lies is for the log alone."""
    instance = _new_instance()
    _logger.error("%s %s failed (%s): %s", request.method, request.url.path, instance, error)
    detail = (
        f"The expert of product {error.task!r} is damaged, and no image of it can be judged before the service's "
        "checkpoint is restored from a copy, or the product trained again; the log says more. Images of other products "
        "are judged."
    )
    return _respond(500, "damaged-product", "The product's expert is damaged", detail, instance=instance)


def _explain(problem: Any) -> str:
    """One sentence about one problem that pydantic found."""
    place, *names = problem["loc"]
    kind = "form field" if place == "form" else f"{place} parameter"
    what = f"{kind} {_short('.'.join(str(name) for name in names))}"
    if problem["type"] == "extra_forbidden":
        return f"There is no {what}."
    reason = str(problem["msg"]).removeprefix("Input ")
    return f"The {what} is {_short(problem['input'])}; it {reason}."


def _short(value: object) -> str:
    """A value that a client sent, to be quoted in an answer."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _retry_after(error: Exception) -> dict[str, str]:
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    if isinstance(error, NotReadyError):
        return {"Retry-After": str(_RETRY_NOT_READY_SECONDS)}
    return {}


def _new_instance() -> str:
    return uuid.uuid4().urn


def _respond(
    status: int, slug: str, title: str, detail: str, *, headers: dict[str, str] | None = None, instance: str = ""
) -> Response:
    problem = Problem(
        type=_TYPE_PREFIX + slug, title=title, status=status, detail=detail, instance=instance or _new_instance()
    )
    return Response(problem.model_dump_json(), status, headers, MEDIA_TYPE)
