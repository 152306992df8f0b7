"""Security headers for every response."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["DOCS_POLICY", "PAGE_POLICY", "SECURITY_HEADERS", "SecurityHeaders"]

_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_OWN_SCRIPTS = f"{_NOTHING}; script-src 'self'; style-src 'self'; connect-src 'self'"

PAGE_POLICY = f"{_OWN_SCRIPTS}; img-src 'self' blob:"
"""Content-Security-Policy of the page, which displays local files (``blob:``)."""

DOCS_POLICY = f"{_OWN_SCRIPTS}; img-src 'self' data: blob:"
"""Content-Security-Policy of the documentation, which has icons in its style sheet and displays image responses."""

SECURITY_HEADERS = {
    "Content-Security-Policy": _NOTHING,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Defaults for responses that do not set their own: data of exactly the declared type, never embedded in a page."""


class SecurityHeaders:
    """Adds ``SECURITY_HEADERS`` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
