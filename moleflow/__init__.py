"""The `moleflow` command: a thin layer over `training`, `model` and `service`."""

__all__ = ["__version__"]

__version__ = "0.1.0"
