"""The HTTP service: decode, batch, predict, encode."""

__all__ = ["errors", "headers", "metrics", "names", "problems", "server", "settings"]
