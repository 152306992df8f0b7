"""The HTTP service: decoding, batching, prediction and encoding."""

__all__ = ["errors", "headers", "metrics", "names", "problems", "server", "settings"]
