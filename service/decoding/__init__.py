"""Decoding uploads in processes that can be ended."""

__all__ = ["check", "pool"]
