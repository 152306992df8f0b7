"""Write a file so that a kill at any instant leaves the old one or the new one, never half."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, sync it and rename it to ``path``.

    Temporary files left behind by earlier kills of writers of the same ``path`` are removed, unless this writer may
    not be ``alone``: then they may belong to others who are at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp's own pattern, no wider: `.a.b.XXXXXXXX.tmp` belongs to a writer of `a.b`, who may be at work.
    left_behind = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for stale in path.parent.iterdir() if alone else ():
        if left_behind.fullmatch(stale.name):
            with suppress(OSError):
                stale.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    # mkstemp makes private files; the result should have the mode that an ordinary open would have given it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
