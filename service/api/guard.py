"""Refuses what only a hostile web page would let a browser send, and queries of a length that no honest client has.

The service has no passwords; whoever reaches it may use it. A browser inside the network reaches it for any page that
it shows. Two things make a page's request the service's own business: the name by which it asks (a page whose name
suddenly stands for this machine, "DNS rebinding", reads answers as if they were its own), and the page that a request
comes from (an answer need not be read to cost the model's time).
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
"""A name of 300 letters, percent-encoded, has room in it; reading as many bytes of parameters takes milliseconds."""

_VERSIONS = frozenset({"1.0", "1.1", "2", "3"})
"""Of HTTP; the last two where another server runs the application."""

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""How this machine is called on itself."""

_PROBES = frozenset({"/health/live", "/health/ready"})
"""What orchestrators ask under the address that the machine happens to have."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""They change nothing (RFC 9110, section 9.2.1), and here cost little; browsers keep their answers from other pages."""

_EXPOSED_HEADERS = (
    "MoLEFlow-Anomalous",
    "MoLEFlow-P-Value",
    "MoLEFlow-Score",
    "MoLEFlow-Task",
    "MoLEFlow-Threshold",
    "MoLEFlow-Verdict",
    "Retry-After",
)
"""What pages of ``cors_origins`` may read beside the body."""


def add_guards(app: FastAPI, settings: Settings) -> None:
    """Let the app refuse foreign hosts and foreign pages, and admit the pages of ``cors_origins``."""
    app.add_middleware(_Guard, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            expose_headers=_EXPOSED_HEADERS,
        )


class _Guard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        listed = settings.allowed_hosts or (_LOOPBACK_NAMES if is_loopback(settings.host) else ("*",))
        self._hosts = frozenset((*listed, settings.host.lower()))
        # Nobody can register a name without a dot; machines of one network call each other by such.
        self._are_short_names_allowed = not settings.allowed_hosts
        self._suffixes = tuple(host.removeprefix("*") for host in self._hosts if host.startswith("*."))
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (self._app if refusal is None else problem_response(*refusal))(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and detail, if the request is refused."""
        headers = Headers(scope=scope)
        if scope["http_version"] not in _VERSIONS:
            return 400, f"The service speaks HTTP/1.1, not HTTP/{scope['http_version']}."
        if len(scope["query_string"]) > _MAX_QUERY_BYTES:
            return 414, f"The query has more than {_MAX_QUERY_BYTES} bytes; its parameters need fewer."
        host = headers.get("host", "")
        if not self._is_allowed(host, scope["path"].removeprefix(scope.get("root_path", ""))):
            return 421, (
                f"The service does not answer to the name {host[:100]!r}. Let MOLEFLOW_ALLOWED_HOSTS (--allowed-hosts) "
                "list the names by which it is reached."
            )
        if scope["method"] not in _SAFE_METHODS and self._is_foreign(headers, host):
            return 403, (
                "The request comes from a web page of another origin. Let MOLEFLOW_CORS_ORIGINS (--cors-origins) list "
                "that origin if it may use the service; a proxy must hand on Host or X-Forwarded-Host."
            )
        return None

    def _is_allowed(self, authority: str, path: str) -> bool:
        # Every browser says whom it calls; only some old programs do not.
        if not authority or "*" in self._hosts:
            return True
        host, _ = host_and_port(authority)
        if host in self._hosts or host.endswith(self._suffixes):
            return True
        if _is_address(host):
            return path in _PROBES
        return self._are_short_names_allowed and host != "" and "." not in host

    def _is_foreign(self, headers: Headers, host: str) -> bool:
        """Whether a browser sent this on behalf of a page that is neither the service's nor admitted."""
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
        # A page cannot forge Sec-Fetch-Site, nor X-Forwarded-Host without being asked first (a CORS preflight).
        forwarded = headers.get("x-forwarded-host", "").split(",", 8)
        return site != "same-origin" and not any(_is_same(page, name.strip()) for name in (host, *forwarded))


def _is_address(host: str) -> bool:
    """Whether a host is an IP address, which no page of another name can be reached under."""
    return ":" in host or host.replace(".", "").isdecimal()


def _is_same(page: tuple[str, int], authority: str) -> bool:
    """Whether a page was loaded under this name. Proxies often leave out the port; then any will do."""
    host, port = host_and_port(authority)
    return host == page[0] and port in (None, page[1])
