"""Reading regular files only: a FIFO would hold the program up for ever, and a device never ends."""

import errno
import os
import stat
from pathlib import Path

__all__ = ["open_regular_file", "read_regular_file"]


def open_regular_file(path: Path) -> int:
    """Open a file to read from: its handle, which the caller closes. Never waits for another program.

    Raises:
        OSError: there is none, it may not be read, or it is a folder, a FIFO, a device or a socket.
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
    """The whole content of a file; ``OSError`` as ``open_regular_file``, and where it exceeds ``limit`` bytes."""
    with os.fdopen(open_regular_file(path), "rb") as file:
        if limit is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)  # it may grow meanwhile
        if max(size, len(data)) > limit:
            raise OSError(errno.EFBIG, f"it has {max(size, len(data)):,} bytes, of at most {limit:,}", str(path))
        return data
