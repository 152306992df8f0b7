"""Decoding uploads in separate processes, which can be killed."""

__all__ = ["check", "pool"]
