"""The error that ends a benchmark."""

__all__ = ["BenchmarkError"]


class BenchmarkError(Exception):
    """The measurement cannot be made. The message says why and what to do; ``python -m benchmarks`` prints it."""
