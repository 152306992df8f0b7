"""The HTTP API and the page: routes, uploads, options, and who may ask."""

__all__ = ["app"]
