"""Thread counts and wait policy, shared by service, trainer, commands and benchmarks.

Call ``prepare_threads`` before importing PyTorch or NumPy, whose runtimes read the environment on load, and
``configure_threads`` before computing. This module imports neither.
"""

import math
import os
from pathlib import Path

from moleflow.model.errors import ConfigurationError

__all__ = [
    "THREAD_POLICY",
    "available_processors",
    "configure_threads",
    "helper_threads",
    "prepare_threads",
    "thread_count",
]

_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Idle OpenMP threads sleep instead of spinning. Spinning threads compete for the CPU: with one other busy process, a
forward pass becomes many times slower (``python -m benchmarks threads``). GNU's runtime, which PyTorch ships on Linux,
reads the first two; LLVM's and Intel's read the first and the last."""

_OPENBLAS = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's matrix products are small here (anomaly maps) and already run on several threads; OpenBLAS's own threads gain
nothing, and spin for 20 ms after each."""

THREAD_POLICY = _OPENMP | _OPENBLAS
"""Environment variables that set the wait policy."""

_MOST_HELPERS = 4
"""With more than four threads to decode or encode, the model was the bottleneck on every machine tested."""

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's CPU quota and its period in microseconds, or ``max`` (Linux, cgroup v2)."""


def prepare_threads() -> None:
    """Set ``THREAD_POLICY`` for this process and its children; call before importing torch or NumPy.

    If the environment sets any of OpenMP's variables, none of them is changed, as one could override another. The same
    holds for OpenBLAS.
    """
    for group in (_OPENMP, _OPENBLAS):
        if not any(os.environ.get(name) for name in group):
            os.environ.update(group)


def thread_count(threads: int | None = None) -> int:
    """Threads per operation: the argument, else ``MOLEFLOW_THREADS``, else ``OMP_NUM_THREADS``, else
    ``available_processors()``.

    Raises:
        ConfigurationError: the number is below 1, or ``MOLEFLOW_THREADS`` is not a number.
    """
    from_outside = os.environ.get("MOLEFLOW_THREADS", "").strip()
    try:
        wanted = threads if threads is not None else int(from_outside or 0)
    except ValueError as error:
        raise ConfigurationError(f"MOLEFLOW_THREADS must be a whole number; got {from_outside!r}.") from error
    if wanted < 0 or threads == 0:
        raise ConfigurationError(f"threads must be at least 1; got {wanted}.")
    return wanted or _openmp_threads() or available_processors()


def configure_threads(threads: int | None = None) -> int:
    """Set PyTorch's number of threads to ``thread_count(threads)``, and return it.

    Call once, before any work.
    """
    import torch

    torch.set_num_threads(thread_count(threads))
    return torch.get_num_threads()


def available_processors() -> int:
    """Processors that this process may use: its CPU affinity, or a container's quota if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota() or bound)


def helper_threads() -> int:
    """Number of threads that decode images while the model works, and of those that encode responses."""
    return min(_MOST_HELPERS, available_processors())


def _openmp_threads() -> int | None:
    """``OMP_NUM_THREADS``, or its first number if it is a list for nested levels."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _quota() -> int | None:
    """The container's quota in processors, rounded up, or ``None``."""
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None
