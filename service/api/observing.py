"""Every request is counted, timed, logged and traced, and gets an id."""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moleflow.model.verdict.results import Finding
from moleflow.service.exchange import REQUEST_ID, Exchange, current, random_id, trace_id_of
from moleflow.service.logs import access_logger
from moleflow.service.metrics import Metrics
from moleflow.service.tracing import Span, request_span

__all__ = ["Observed", "exchange_of", "note_finding"]

_REQUEST_ID = REQUEST_ID.lower().encode()


class Observed:
    """Labels of metrics are route templates, not paths, to bound the number of series."""

    def __init__(self, app: ASGIApp, metrics: Metrics, new_id: Callable[[], str] = random_id) -> None:
        self._app, self._metrics, self._new_id = app, metrics, new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500
        headers = Headers(scope=scope)
        exchange = Exchange.of(headers.getlist(REQUEST_ID), self._new_id)
        own_id = (_REQUEST_ID, exchange.request_id.encode())

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), own_id]}
            await send(message)

        state = scope.setdefault("state", {})
        state["exchange"] = exchange
        token = current.set(exchange)
        try:
            with request_span(scope["method"], headers) as span:
                exchange.trace_id = span.trace_id or trace_id_of(headers.getlist("traceparent"))
                state["span"] = span
                span.set(moleflow_request_id=exchange.request_id)
                try:
                    await self._app(scope, receive, send_and_record)
                finally:
                    route, seconds = getattr(scope.get("route"), "path", "other"), perf_counter() - started
                    self._metrics.requests.labels(route, str(status)).inc()
                    self._metrics.request_seconds.labels(route).observe(seconds)
                    span.finish(scope["method"], route, status)
                    if access_logger.isEnabledFor(logging.INFO):
                        _log(scope, exchange, route, status, seconds)
        finally:
            current.reset(token)


def exchange_of(request: Request) -> Exchange:
    """What the log will say of a request."""
    return request.state.exchange


def note_finding(request: Request, finding: Finding) -> None:
    """Note what was found in the only image of a request, for its log line and its span."""
    exchange_of(request).note(finding)
    span: Span = request.state.span
    span.describe(finding)


def _log(scope: Scope, exchange: Exchange, route: str, status: int, seconds: float) -> None:
    """The request's line in the log. Neither headers nor the query are in it, which may hold secrets."""
    state = scope["state"]
    address = (scope.get("client") or ("",))[0]
    fields: dict[str, Any] = {
        "method": state.get("method", scope["method"]),
        "route": route,
        "path": quote(scope["path"]),
        "status": status,
        "milliseconds": round(seconds * 1000, 3),
        "request_id": exchange.request_id,
        "trace_id": exchange.trace_id,
        "client": state.get("client"),
        "address": address,
        "product": exchange.product,
        "verdict": exchange.verdict,
        "score": exchange.score,
    }
    found = "" if exchange.verdict is None else f", {exchange.product!r} {exchange.verdict}"
    trace = f", trace {exchange.trace_id}" if exchange.trace_id else ""
    access_logger.info(
        '%s - "%s %s" %d %.1f ms, request %s%s%s',
        address,
        fields["method"],
        fields["path"],
        status,
        fields["milliseconds"],
        exchange.request_id,
        trace,
        found,
        extra={"fields": fields},
    )
