"""The HTTP API and the web page: routes, uploads, options, access checks."""

__all__ = ["app"]
