"""A port of its own for administration and metrics, so that a network can keep clients away from both."""

from starlette.types import ASGIApp, Receive, Scope, Send

from moleflow.service.api.keys import Access, needed_access
from moleflow.service.problems import problem_response

__all__ = ["AdminPort"]

_METRICS = "/metrics"

_PROBES = frozenset({"/health/live", "/health/ready"})
"""Answered on both ports."""


class AdminPort:
    """What only an administrator may do, and metrics, are answered on ``port`` only, and there nothing else is."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app, self._port = app, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            is_administration = path == _METRICS or needed_access(scope["method"], path) is Access.ADMIN
            is_admin_port = (scope.get("server") or ("", None))[1] == self._port
            if path not in _PROBES and is_administration != is_admin_port:
                app = problem_response(
                    404,
                    f"There is nothing at {path[:200]} on this port: administration and metrics have one of their own "
                    "(MOLEFLOW_ADMIN_PORT).",
                )
        await app(scope, receive, send)
