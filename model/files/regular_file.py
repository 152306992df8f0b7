"""Reading of regular files only: a FIFO may block forever, and a device may never end."""

import errno
import os
import stat
from pathlib import Path

__all__ = ["open_regular_file", "read_regular_file"]


def open_regular_file(path: Path) -> int:
    """Open a file for reading without blocking; the caller closes the handle.

    Raises:
        OSError: it does not exist, may not be read, or is a folder, a FIFO, a device or a socket.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is a FIFO or a device, not a file", str(path))


def read_regular_file(path: Path, limit: int | None = None) -> bytes:
    """The content of a file; ``OSError`` as ``open_regular_file``, or if it has more than ``limit`` bytes."""
    with os.fdopen(open_regular_file(path), "rb") as file:
        if limit is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)  # the file may grow meanwhile
        if max(size, len(data)) > limit:
            raise OSError(errno.EFBIG, f"it has {max(size, len(data)):,} bytes; the limit is {limit:,}", str(path))
        return data
