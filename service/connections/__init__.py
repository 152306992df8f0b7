"""Client connections, with a limit on everything that a client can delay."""

__all__ = ["acceptor", "hangup", "lifecycle", "registry", "sending"]
