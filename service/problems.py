"""Error responses as problem documents (RFC 9457)."""

import http
import logging
import math
import uuid
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moleflow.model.errors import (
    ExpertError,
    ImageTooLargeError,
    MoLEFlowError,
    UnknownTaskError,
    UnsupportedImageError,
)
from moleflow.service.errors import (
    ArchiveError,
    ClientLimitError,
    DeadlineError,
    FeedbackError,
    JobError,
    NoKeyError,
    NotAllowedError,
    NotChangedError,
    NotLiveError,
    NotReadyError,
    OverloadedError,
    ProductNameError,
    ReloadError,
    TeachingError,
    TeachingOffError,
    UnknownAnswerError,
    UnknownImageError,
    UnknownJobError,
    UnknownProductError,
)
from moleflow.service.responses.schemas import Problem

__all__ = [
    "MEDIA_TYPE",
    "STATUS_CLIENT_CLOSED",
    "add_problem_handlers",
    "error_response",
    "problem_of",
    "problem_response",
    "problem_type",
]

MEDIA_TYPE = "application/problem+json"
"""Media type of problem documents (RFC 9457, section 3)."""

STATUS_CLIENT_CLOSED = 499
"""Recorded in the metrics when a client disconnects before its response; never sent. The number is nginx's."""

_TYPE_PREFIX = "urn:moleflow:problem:"
"""Prefix of problem types, which are names and cannot be resolved."""

_DAMAGED_TYPE, _INTERNAL_TYPE = "damaged-product", "internal-error"
"""Types of the errors with status 500."""

_RETRY_NOT_READY_SECONDS = 5
"""Loading the model takes seconds."""

_MAX_EXPLAINED, _MAX_QUOTED = 5, 200
"""How many problems of one request are explained, and how many characters of an invalid value are quoted."""

_logger = logging.getLogger(__name__)


_KINDS: dict[type[Exception], tuple[int, str, str]] = {
    UnsupportedImageError: (415, "unsupported-image", "The image cannot be read"),
    ImageTooLargeError: (413, "image-too-large", "The image is too large"),
    UnknownProductError: (422, "unknown-product", "The image shows no learned product"),
    UnknownTaskError: (404, "unknown-task", "Unknown product"),
    ClientLimitError: (429, "client-limit", "This client sends too many requests"),
    OverloadedError: (429, "overloaded", "Too many requests"),
    NoKeyError: (401, "no-key", "An API key is needed"),
    NotAllowedError: (403, "not-allowed", "The client is not allowed to do this"),
    UnknownAnswerError: (404, "unknown-answer", "No such answer"),
    FeedbackError: (507, "feedback-not-kept", "The feedback was not kept"),
    TeachingOffError: (404, "teaching-off", "This service is not taught"),
    TeachingError: (507, "teaching-failed", "The folder for teaching cannot be used"),
    ArchiveError: (422, "unusable-archive", "The archive cannot be used"),
    ProductNameError: (422, "invalid-name", "No product can have this name"),
    UnknownImageError: (404, "unknown-image", "No such image"),
    UnknownJobError: (404, "unknown-job", "No such job"),
    JobError: (409, "job-refused", "The job was refused"),
    NotChangedError: (409, "not-changed", "The products were not changed"),
    ReloadError: (409, "not-reloaded", "The checkpoint was not reloaded"),
    NotReadyError: (503, "not-ready", "The service is not ready"),
    DeadlineError: (504, "deadline-passed", "The answer was not ready in time"),
    NotLiveError: (503, "not-live", "The service must be restarted"),
}
"""Status, type and title of known errors; any other error is an internal one."""


_STATUSES: dict[int, tuple[str, str]] = {
    400: ("malformed-request", "The request is malformed"),
    403: ("foreign-page", "The web page's origin is not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    406: ("not-acceptable", "Response format not supported"),
    408: ("upload-timeout", "The request took too long to arrive"),
    413: ("body-too-large", "The body is too large"),
    414: ("query-too-long", "The query string is too long"),
    415: ("unsupported-body", "Content type not supported"),
    421: ("unknown-host", "Host name not allowed"),
    422: ("invalid-request", "The request is invalid"),
    431: ("too-many-headers", "The request has too many headers"),
}
"""Type and title of errors raised by status code alone."""


def problem_response(status: int, detail: str) -> Response:
    """The response to a request that is rejected with this status, a key of ``_STATUSES``."""
    return _respond(_problem(status, *_STATUSES[status], detail))


def add_problem_handlers(app: FastAPI) -> None:
    """Make the app respond to every error with a problem document."""
    app.add_exception_handler(MoLEFlowError, _on_known_error)
    app.add_exception_handler(StarletteHTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_middleware(_UnexpectedErrors)


def problem_type(error: Exception) -> str:
    """The type of the problem document for an error that an image caused, as an URN."""
    if isinstance(error, ExpertError):
        return _TYPE_PREFIX + _DAMAGED_TYPE
    slugs = (_KINDS[kind][1] for kind in type(error).__mro__ if kind in _KINDS)
    return _TYPE_PREFIX + next(slugs, _INTERNAL_TYPE)


def problem_of(request: Request, error: Exception) -> Problem:
    """The problem document for an error that an image of this request caused; what only a log may tell is logged."""
    if isinstance(error, ExpertError):
        return _damaged(request, error)
    for kind in type(error).__mro__:
        if kind in _KINDS:
            return _problem(*_KINDS[kind], str(error))
    return _internal(request, error)


async def _on_known_error(request: Request, error: Exception) -> Response:
    return error_response(request, error)


def error_response(request: Request, error: Exception, where: str = "") -> Response:
    """The response to an error of the project; ``where`` names the image among several that caused it."""
    problem = problem_of(request, error)
    if where:
        problem = problem.model_copy(update={"detail": f"{where}: {problem.detail}"})
    needs_key = problem.status == http.HTTPStatus.UNAUTHORIZED
    return _respond(problem, {"WWW-Authenticate": "Bearer"} if needs_key else _retry_after(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Errors raised by routing and by reading uploads."""
    assert isinstance(error, StarletteHTTPException)
    status, detail = error.status_code, error.detail
    slug, title = _STATUSES.get(status, (f"http-{status}", http.HTTPStatus(status).phrase))
    headers = dict(error.headers or {})
    if not isinstance(error, HTTPException):  # raised by the router, without a useful detail
        if status == http.HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {request.url.path}; see /docs for the routes."
        elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:
            # The router knows only the methods of the first route that has this path.
            methods = {
                method
                for route in request.app.state.routes
                if route.matches(request.scope)[0] is not Match.NONE
                for method in route.methods
            } or set(headers["Allow"].split(", "))
            # The router does not know that HEAD works wherever GET does (moleflow.service.api.methods).
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
            detail = f"{request.method} is not allowed at {request.url.path}; use {headers['Allow']}."
    return _respond(_problem(status, slug, title, detail), headers)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    detail = " ".join(_explain(problem) for problem in problems[:_MAX_EXPLAINED])
    if len(problems) > _MAX_EXPLAINED:
        detail += f" And {len(problems) - _MAX_EXPLAINED} more problems."
    return _respond(_problem(422, *_STATUSES[422], detail))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=STATUS_CLIENT_CLOSED)


class _UnexpectedErrors:
    """Turns any other exception into a response. Starlette's own handler re-raises afterwards, upon which servers
    close the connection although the client may be about to reuse it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_record(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await _respond(_internal(Request(scope), error))(scope, receive, send)


def _internal(request: Request, error: Exception) -> Problem:
    """An unexpected failure: the cause goes to the log, an identifier to both the log and the client."""
    instance = _new_instance()
    _logger.error("%s %s failed (%s)", request.method, request.url.path, instance, exc_info=error)
    detail = "The service failed on this request, which seems to be valid. Try again."
    return _problem(500, _INTERNAL_TYPE, "The service failed", detail, instance)


def _damaged(request: Request, error: ExpertError) -> Problem:
    """The product's expert is damaged. The path of the checkpoint is for the log only."""
    instance = _new_instance()
    _logger.error("%s %s failed (%s): %s", request.method, request.url.path, instance, error)
    detail = (
        f"The expert of product {error.task!r} is damaged, so its images cannot be scored. Restore the service's "
        "checkpoint from a backup, or retrain the product; see the log. Other products are not affected."
    )
    return _problem(500, _DAMAGED_TYPE, "The product's expert is damaged", detail, instance)


def _explain(problem: Any) -> str:
    place, *names = problem["loc"]
    kind = "form field" if place == "form" else f"{place} parameter"
    what = f"{kind} {_short('.'.join(str(name) for name in names))}"
    if problem["type"] == "extra_forbidden":
        return f"There is no {what}."
    reason = str(problem["msg"]).removeprefix("Input ")
    return f"The {what} is {_short(problem['input'])}; it {reason}."


def _short(value: object) -> str:
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


def _problem(status: int, slug: str, title: str, detail: str, instance: str = "") -> Problem:
    return Problem(
        type=_TYPE_PREFIX + slug, title=title, status=status, detail=detail, instance=instance or _new_instance()
    )


def _respond(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)
