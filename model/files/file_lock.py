"""File locks that end with the process: a leftover lock file locks nobody out."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

__all__ = ["has_no_locks", "lock_open_file", "release_lock", "try_lock"]

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of file systems without locks, such as a network share without its lock service."""


def has_no_locks(error: OSError) -> bool:
    """Whether locking failed because the file system has no locks."""
    return error.errno in _NO_LOCKS


def try_lock(path: Path) -> int | None:
    """Lock the file at ``path``, created if missing; its open handle, or ``None`` if another process holds the lock.

    Raises:
        OSError: the file cannot be created or opened, or its file system has no locks (``has_no_locks``).
    """
    while True:
        handle = _open(path)
        try:
            if not lock_open_file(handle):
                os.close(handle)
                return None
            # The last holder may have unlinked the file between open and lock; then nobody else can see our lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def release_lock(path: Path, handle: int) -> None:
    """Remove the file that ``try_lock`` locked, then release the lock: the next holder creates a new file."""
    with contextlib.suppress(OSError):  # a leftover file is harmless
        path.unlink()
    os.close(handle)


def lock_open_file(handle: int) -> bool:
    """Lock an open file; false if another process holds the lock. ``OSError`` as ``try_lock``."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    # Do not follow a symbolic link, and do not block on a FIFO.
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's lock file may be read-only, which is enough.
        return os.open(path, flags | os.O_RDONLY)
