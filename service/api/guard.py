"""Rejects requests that hostile web pages make browsers send, and overlong query strings.

The service has no authentication: whoever reaches it may use it, and any page open in a browser on the same network
can reach it. So the guard checks the host name (with DNS rebinding, a page's own name resolves to this machine, and the
page can read responses as its own) and the origin (even a response that the page cannot read costs inference time).
"""

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from moleflow.service.names import host_and_port, is_loopback, origin_parts
from moleflow.service.problems import problem_response
from moleflow.service.settings import Settings

__all__ = ["add_guards"]

_MAX_QUERY_BYTES = 4096
"""Enough for a percent-encoded name of 300 letters; parsing that many bytes takes milliseconds."""

_HTTP_VERSIONS = frozenset({"1.0", "1.1", "2", "3"})
"""2 and 3 are possible when another server runs the application."""

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_PROBES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
"""Orchestrators request these at the container's IP address."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Without side effects (RFC 9110, section 9.2.1) and cheap; browsers hide the responses from other origins."""

_EXPOSED_HEADERS = (
    "MoLEFlow-Anomalous",
    "MoLEFlow-Id",
    "MoLEFlow-P-Value",
    "MoLEFlow-Score",
    "MoLEFlow-Task",
    "MoLEFlow-Threshold",
    "MoLEFlow-Verdict",
    "Retry-After",
    "X-Request-ID",
)
"""Response headers that pages of ``cors_origins`` may read."""


def add_guards(app: FastAPI, settings: Settings) -> None:
    """Reject requests for unknown hosts and from foreign origins; allow those of ``cors_origins``."""
    app.add_middleware(_Guard, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID", "X-Request-Timeout-Ms", "traceparent"],
            expose_headers=_EXPOSED_HEADERS,
        )


class _Guard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        listed = settings.allowed_hosts or (_LOOPBACK_NAMES if is_loopback(settings.host) else ("*",))
        self._hosts = frozenset((*listed, settings.host.lower()))
        # Names without a dot are used inside a network and cannot be registered, so they are safe from rebinding.
        self._are_short_names_allowed = not settings.allowed_hosts
        self._suffixes = tuple(host.removeprefix("*") for host in self._hosts if host.startswith("*."))
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rejection = self._rejection(scope) if scope["type"] == "http" else None
        await (self._app if rejection is None else problem_response(*rejection))(scope, receive, send)

    def _rejection(self, scope: Scope) -> tuple[int, str] | None:
        """Status and detail if the request is rejected."""
        headers = Headers(scope=scope)
        if scope["http_version"] not in _HTTP_VERSIONS:
            return 400, f"HTTP/{scope['http_version']} is not supported; use HTTP/1.1."
        if len(scope["query_string"]) > _MAX_QUERY_BYTES:
            return 414, f"The query string has more than {_MAX_QUERY_BYTES} bytes, which is the limit; shorten it."
        host = headers.get("host", "")
        if not self._is_allowed(host, scope["path"].removeprefix(scope.get("root_path", ""))):
            return 421, (
                f"The host name {host[:100]!r} is not allowed. Add it to MOLEFLOW_ALLOWED_HOSTS (--allowed-hosts) if "
                "clients may use it."
            )
        if scope["method"] not in _SAFE_METHODS and self._is_foreign(headers, host):
            return 403, (
                "The request comes from a web page of another origin. Add that origin to MOLEFLOW_CORS_ORIGINS "
                "(--cors-origins) if it may use the service; a proxy must forward Host or set X-Forwarded-Host."
            )
        return None

    def _is_allowed(self, authority: str, path: str) -> bool:
        # Every browser sends Host; only some old programs do not.
        if not authority or "*" in self._hosts:
            return True
        host, _ = host_and_port(authority)
        if host in self._hosts or host.endswith(self._suffixes):
            return True
        if _is_address(host):
            return path in _PROBES
        return self._are_short_names_allowed and host != "" and "." not in host

    def _is_foreign(self, headers: Headers, host: str) -> bool:
        """Whether a browser sent the request for a page that is neither the service's own nor allowed."""
        site = headers.get("sec-fetch-site", "")
        origins = headers.getlist("origin")
        if not origins:
            return site in {"cross-site", "same-site"}
        origin = origins[0].lower()
        page = origin_parts(origin)
        if len(origins) > 1 or page is None:
            return True
        if origin in self._origins or "*" in self._origins:
            return False
        # A page cannot forge Sec-Fetch-Site, and setting X-Forwarded-Host triggers a CORS preflight.
        forwarded = headers.get("x-forwarded-host", "").split(",", 8)
        return site != "same-origin" and not any(_is_same(page, name.strip()) for name in (host, *forwarded))


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdecimal()


def _is_same(page: tuple[str, int], authority: str) -> bool:
    """Whether a page was loaded from this host. Proxies often omit the port; then any port matches."""
    host, port = host_and_port(authority)
    return host == page[0] and port in (None, page[1])
