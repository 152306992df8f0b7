"""Atomic file writes: a kill at any time leaves the complete old file or the complete new one.

A symbolic link is kept and its target replaced. A replaced file keeps its mode, owner, group and extended attributes.
Hard links keep the old content, as snapshots made of hard links rely on.
"""

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moleflow.model.files.file_lock import has_no_locks, try_lock

__all__ = ["atomic_write", "remove_stale_workspaces", "sync", "target_of", "workspace"]

_LOCK = ".moleflow.lock"
"""Lock file inside a temporary folder; if nobody holds the lock, the folder is stale."""

_STEM_BYTES = 100
"""Bytes of the file name used in the temporary folder's name, so that it is not too long."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def target_of(path: Path) -> Path:
    """The absolute path with all symbolic links resolved; the file need not exist.

    Raises:
        OSError: the links form a cycle, or the target exists and is not a regular file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISREG(mode):
        return Path(os.path.realpath(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
    raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is {kind}", str(path))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success, fsync the file and rename it to ``path``'s target.

    Raises:
        OSError: as ``target_of``, or a file cannot be written; the old file is not changed.
    """
    target = target_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with workspace(target) as folder:
        temporary = folder / target.name
        yield temporary
        sync(temporary)  # before copying the mode, which may forbid opening it
        _copy_metadata(target, temporary, folder)
        temporary.replace(target)
    sync(target.parent)


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, exclusive to this writer and removed at the end.

    A folder rather than a file, since libraries may create temporary files of their own next to their output, which a
    kill would leave behind. Folders are numbered and locked, and a writer takes the first one that is not held: stale
    ones are found without listing the parent, which may have 100,000 files.
    """
    stem = os.fsdecode(os.fsencode(target.name)[:_STEM_BYTES])
    folder, handle = next(
        (folder, handle)
        for folder in (target.with_name(f".{stem}.{number}.tmp") for number in itertools.count())
        if (handle := _claim(folder)) is not None
    )
    try:
        _empty(folder)
        yield folder
    finally:
        _discard(folder, handle)


def remove_stale_workspaces(folder: Path) -> None:
    """Remove the temporary folders of killed writers anywhere below ``folder``, but not those in use."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                path = Path(parent, name)
                handle = _claim(path, make=False)
                if handle is not None:
                    _discard(path, handle)


def _claim(folder: Path, *, make: bool = True) -> int | None:
    """Lock a temporary folder, creating it if ``make``; its lock's handle, or ``None`` if another process holds it."""
    while True:
        made = False
        with contextlib.suppress(FileExistsError):
            if make:
                folder.mkdir(0o700)
                made = True
        try:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                return None
            return try_lock(folder / _LOCK)
        except FileNotFoundError:
            if not make:
                return None  # just removed by its writer
        except OSError as error:
            if not made:
                return None
            if has_no_locks(error):  # others cannot tell whether it is in use, and leave it alone
                return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    """Remove everything in the folder but its lock."""
    for entry in list(folder.iterdir()):
        if entry.name != _LOCK and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def _discard(folder: Path, handle: int) -> None:
    """Remove a temporary folder that we hold, the lock file last: after that another writer may take it."""
    with contextlib.suppress(OSError):
        _empty(folder)
        (folder / _LOCK).unlink()
    with contextlib.suppress(OSError):  # taken by another writer
        folder.rmdir()
    os.close(handle)
    with contextlib.suppress(OSError):  # some network file systems keep an open file, and its folder, until it closes
        folder.rmdir()


def _copy_metadata(target: Path, temporary: Path, folder: Path) -> None:
    """Copy the old file's metadata, or set a new file's default mode: libraries may create private files."""
    try:
        old = target.stat()
    except FileNotFoundError:
        ordinary = folder / ".moleflow.new"
        ordinary.touch()
        temporary.chmod(stat.S_IMODE(ordinary.stat().st_mode))
        return
    # Changing the group may be allowed where changing the owner is not.
    with contextlib.suppress(PermissionError):
        os.chown(temporary, -1, old.st_gid)
        os.chown(temporary, old.st_uid, -1)
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):  # not supported by the file system
            for name in os.listxattr(target):
                with contextlib.suppress(OSError):  # reserved for the system
                    os.setxattr(temporary, name, os.getxattr(target, name))
    temporary.chmod(stat.S_IMODE(old.st_mode))


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
