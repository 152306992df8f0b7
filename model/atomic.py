"""Write a file so that a kill at any instant leaves the old one or the new one, never half."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, sync the file there and rename it to ``path``.

    It lies in a folder of its own beside ``path``, since libraries that write files put temporary ones of their own
    next to them, which a kill leaves behind. Folders left by earlier kills of writers of the same ``path`` are removed,
    unless this writer may not be ``alone``: then they may belong to others who are at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp's own pattern, no wider: `.a.b.XXXXXXXX.tmp` belongs to a writer of `a.b`, who may be at work.
    left_behind = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for stale in list(path.parent.iterdir()) if alone else ():
        if left_behind.fullmatch(stale.name):
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = folder / path.name
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    # Some libraries make private files; the result should have the mode that an ordinary open would have given it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
