"""The connections of clients, with a bound on everything that they may leave undone."""

__all__ = ["acceptor", "lifecycle", "registry", "sending"]
