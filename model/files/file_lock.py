"""A lock on a file: it ends with the process that holds it, and a file that is left behind locks nobody out."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

__all__ = ["has_no_locks", "lock_open_file", "release_lock", "try_lock"]

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system answers that has no locks, such as a network share without its lock service."""


def has_no_locks(error: OSError) -> bool:
    """Whether locking failed because the file system has no locks."""
    return error.errno in _NO_LOCKS


def try_lock(path: Path) -> int | None:
    """Lock the file at ``path``, made where it is missing: its open handle, or nothing where another holds the lock.

    Raises:
        OSError: the file cannot be made or opened, or its file system has no locks (``has_no_locks``).
    """
    while True:
        handle = _open(path)
        try:
            if not lock_open_file(handle):
                os.close(handle)
                return None
            # Its last holder may have removed the file between our opening and our locking it: what we hold is then a
            # file that nobody else can find.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def release_lock(path: Path, handle: int) -> None:
    """Remove the file that ``try_lock`` locked, then let it go: whoever waits for it makes a new one."""
    with contextlib.suppress(OSError):  # one that stays is only locked again
        path.unlink()
    os.close(handle)


def lock_open_file(handle: int) -> bool:
    """Lock an open file; false where another process holds it. ``OSError`` as ``try_lock``."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    # A link at a lock's place is not followed, and a FIFO does not hold us up.
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # One that another user left may be readable only, which is enough.
        return os.open(path, flags | os.O_RDONLY)
