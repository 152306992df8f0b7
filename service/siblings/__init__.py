"""Several processes behind one port: how each reaches the others."""

__all__ = ["exposition", "link"]
