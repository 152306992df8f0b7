"""Client connections, with a limit on everything that a client can delay."""

__all__ = ["acceptor", "lifecycle", "registry", "sending"]
