"""Continual visual anomaly detection: one checkpoint and one endpoint for every product it has learned."""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    """``__version__`` of the installed package, looked up on demand: the look-up takes longer than the import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moleflow")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"
