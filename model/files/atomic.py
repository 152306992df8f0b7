"""Write a file so that a kill at any instant leaves the old one or the new one, never half.

Every file that this program keeps is written so. A symbolic link stays one and the file that it leads to is replaced;
a file that is replaced keeps its mode, owner, group and extended attributes. Other names of the same file (hard links)
go on naming the old content, which is what snapshots made of hard links rely on.
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

__all__ = ["atomic_write", "remove_stale_workspaces", "target_of", "workspace"]

_LOCK = ".moleflow.lock"
"""File inside a temporary folder that its writer holds locked: without a holder the folder was left behind."""

_STEM_BYTES = 100
"""Bytes of a file's name that its temporary folder's name begins with; the whole of a long name would not fit."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def target_of(path: Path) -> Path:
    """The file that writing to ``path`` changes: absolute, all symbolic links followed; it need not be there yet.

    Raises:
        OSError: the links run in a circle, or what is there is no regular file, which is never replaced.
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
    """Give a temporary path; when the block ends well, sync the file there and rename it to ``path``'s target.

    Raises:
        OSError: as ``target_of``, or a file cannot be written; the old one stays as it was.
    """
    target = target_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with workspace(target) as folder:
        temporary = folder / target.name
        yield temporary
        _sync(temporary)  # before it takes the old one's mode, which may forbid to open it
        _take_after(target, temporary, folder)
        temporary.replace(target)
    _sync(target.parent)


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` that no other living writer uses; it is removed at the end.

    A folder of its own, since libraries that write files put temporary ones of their own next to them, which a kill
    leaves behind. Folders are numbered and each is locked, so a writer takes the first that nobody holds, and what a
    killed one left is found without listing the folder, which may hold 100,000 files.
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
    """Remove the temporary folders of killed writers anywhere below ``folder``; those in use stay."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                path = Path(parent, name)
                handle = _claim(path, make=False)
                if handle is not None:
                    _discard(path, handle)


def _claim(folder: Path, *, make: bool = True) -> int | None:
    """Lock a temporary folder: its open lock, or nothing where it is another's. It is made where it is missing."""
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
                return None  # its writer has just removed it
        except OSError as error:
            if not made:
                return None
            if has_no_locks(error):  # whoever finds it cannot tell that it is ours, and leaves it alone
                return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    """Remove what a killed writer left in the folder."""
    for entry in list(folder.iterdir()):
        if entry.name != _LOCK and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def _discard(folder: Path, handle: int) -> None:
    """Remove a temporary folder that we hold, its lock last: from then on it may be another writer's."""
    with contextlib.suppress(OSError):
        _empty(folder)
        (folder / _LOCK).unlink()
    with contextlib.suppress(OSError):  # another writer has it already
        folder.rmdir()
    os.close(handle)
    with contextlib.suppress(OSError):  # some network shares keep an open file, and so its folder, until it is closed
        folder.rmdir()


def _take_after(target: Path, temporary: Path, folder: Path) -> None:
    """Give the new file what the old one had, or what an ordinary new file has: libraries may make private ones."""
    try:
        old = target.stat()
    except FileNotFoundError:
        ordinary = folder / ".moleflow.new"
        ordinary.touch()
        temporary.chmod(stat.S_IMODE(ordinary.stat().st_mode))
        return
    # Where the owner may not be given away, the group may; where neither may be, the mode is kept all the same.
    with contextlib.suppress(PermissionError):
        os.chown(temporary, -1, old.st_gid)
        os.chown(temporary, old.st_uid, -1)
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):  # a file system without them
            for name in os.listxattr(target):
                with contextlib.suppress(OSError):  # those that only the system may set
                    os.setxattr(temporary, name, os.getxattr(target, name))
    temporary.chmod(stat.S_IMODE(old.st_mode))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
