"""Threads: how many there are and how they wait, decided here for service, trainer, commands and benchmarks alike.

A program calls ``prepare_threads`` before it imports PyTorch or NumPy, whose runtimes read the environment once, when
they are loaded, and ``configure_threads`` before it computes. This module imports neither.
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
]

_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Threads of OpenMP sleep while they have nothing to do. By default they spin, which takes the processor from whoever
could use it: with one busy process beside it, a spinning forward pass is slowed many times over (``python -m benchmarks
threads``). The first two are read by GNU's runtime, which PyTorch brings on Linux, the first and the last by LLVM's and
Intel's."""

_OPENBLAS = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's products are small here (an anomaly map), and several threads of ours make them at once; OpenBLAS's own
threads would gain them nothing, and spin for 20 ms after each."""

THREAD_POLICY = _OPENMP | _OPENBLAS
"""Environment variables that say how threads wait."""

_MOST_HELPERS = 4
"""Past four threads that decode or encode, the model is the slower part on any machine tried."""

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the processors, as a quota and its period in microseconds, or ``max`` (Linux, cgroup v2)."""


def prepare_threads() -> None:
    """Set ``THREAD_POLICY`` for this process and its children; to be called before anything imports torch or NumPy.

    Who sets one of OpenMP's variables outside keeps all of OpenMP's as they are: they overrule each other, so that a
    value added here could undo the one that was set. The same holds for OpenBLAS.
    """
    for group in (_OPENMP, _OPENBLAS):
        if not any(os.environ.get(name) for name in group):
            os.environ.update(group)


def configure_threads(threads: int | None = None) -> int:
    """Set how many threads a tensor operation may use: the argument, else ``MOLEFLOW_THREADS``, else
    ``OMP_NUM_THREADS``, else all processors that this process may use.

    Call once, before any work. Returns the number in force.

    Raises:
        ConfigurationError: a number below 1, or ``MOLEFLOW_THREADS`` is no number.
    """
    import torch

    from_outside = os.environ.get("MOLEFLOW_THREADS", "").strip()
    try:
        wanted = threads if threads is not None else int(from_outside or 0)
    except ValueError as error:
        raise ConfigurationError(f"MOLEFLOW_THREADS must be a whole number; got {from_outside!r}.") from error
    if wanted < 0 or threads == 0:
        raise ConfigurationError(f"threads must be at least 1; got {wanted}.")
    torch.set_num_threads(wanted or _openmp_threads() or available_processors())
    return torch.get_num_threads()


def available_processors() -> int:
    """How many processors this process may keep busy: those it is bound to, or a container's quota if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota() or bound)


def helper_threads() -> int:
    """Threads that decode images beside the model's work, and as many that encode answers."""
    return min(_MOST_HELPERS, available_processors())


def _openmp_threads() -> int | None:
    """``OMP_NUM_THREADS``, or its first number where it lists one for each level of nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _quota() -> int | None:
    """The container's quota in whole processors, rounded up; ``None`` without one."""
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None
