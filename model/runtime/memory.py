"""How the C library keeps memory that was freed, decided here for all commands. Imports neither PyTorch nor NumPy."""

import ctypes
import os

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of ``mallopt(3)``."""

_KEPT_BYTES = 2**30
"""Freed blocks below this size stay with the process."""


def keep_freed_memory() -> bool:
    """Let the C library keep large freed blocks for the next operation, of whatever thread; says whether it does.

    By default glibc gives large blocks back to the kernel when they are freed and gets them again page by page: a
    training step of MAIN took 343,000 page faults and 12 % of its time for that, a batch of eight predictions 7,000
    and a tenth; with this they take none. And by default each thread keeps what it freed for itself: a service, whose
    images go through one thread after another, grows by what lies idle in each. With this all threads share one
    heap. The process stays as large as it once was.

    To be called before there are other threads; one that has a heap of its own keeps it. Elsewhere than on glibc
    nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    settings = {_M_MMAP_THRESHOLD: _KEPT_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES, _M_ARENA_MAX: 1}
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
