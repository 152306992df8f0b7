"""malloc tuning, shared by all commands. Imports neither PyTorch nor NumPy."""

import ctypes
import os

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of ``mallopt(3)``."""

_KEPT_BYTES = 2**30
"""Freed blocks below this size stay in the process."""


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks, in one heap for all threads. Returns whether it does.

    By default glibc returns large blocks to the kernel and faults them in again page by page: 343,000 page faults and
    12 % of the time of a training step of ``main``, 7,000 and a tenth for a batch of eight predictions. Each thread
    also has an arena of its own, so a service whose images pass through several threads grows by what is idle in each.
    The price: the process never shrinks.

    Call before starting threads; a thread that already has an arena keeps it. No effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    settings = {_M_MMAP_THRESHOLD: _KEPT_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES, _M_ARENA_MAX: 1}
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
