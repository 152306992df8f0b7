"""Output files of commands: checked before the work starts, written atomically, with clear errors."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from moleflow.model.errors import ConfigurationError
from moleflow.model.files.atomic import atomic_write, target_of, workspace

__all__ = ["check_output", "check_output_folder", "reason", "remedy", "write_bytes", "write_text", "writing"]

_TRIAL_BYTES = 4096
"""Size of the trial write: one block of most file systems."""

_REMEDIES = {
    errno.ENOSPC: "make room there, or choose another location",
    errno.EDQUOT: "make room there (the quota is used up), or choose another location",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose another location",
    errno.EACCES: "check the permissions, or choose another location",
    errno.EPERM: "check the permissions, or choose another location",
    errno.EROFS: "choose a writable location",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "give the path of a file",
    errno.ELOOP: "fix the symbolic links, which form a cycle",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EXDEV: "mount its folder instead of the file itself",
    errno.EBUSY: "mount its folder instead of the file itself",
}


def reason(error: OSError) -> str:
    """Why a file could not be used, without its name."""
    return error.strerror or str(error) or type(error).__name__


def remedy(error: OSError) -> str:
    """What to do about a file system error, as the end of a message."""
    if error.errno == errno.ENOENT:
        try:
            Path.cwd()
        except FileNotFoundError:
            return "the current folder was removed: change to another one"
    return _REMEDIES.get(error.errno or 0, "choose another location")


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into a ``ConfigurationError`` that calls it ``what``."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{what} {str(path)!r} cannot be written ({reason(error)}); {remedy(error)}."
        ) from error


def check_output(what: str, path: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Check that ``path`` can be written, without changing an existing file; creates missing folders.

    Raises:
        ConfigurationError: it cannot be written, or is one of ``inputs``.
    """
    with writing(what, path):
        target = target_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _trial_write(target)
    for source in inputs:
        with contextlib.suppress(OSError):
            if target.samefile(source):
                raise ConfigurationError(
                    f"{what} {str(path)!r} would overwrite the input {str(source)!r}; choose another name."
                )


def check_output_folder(what: str, folder: Path) -> None:
    """Check that files can be written into ``folder``; creates it if missing.

    Raises:
        ConfigurationError: they cannot.
    """
    with writing(what, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder)) from error
        _trial_write(folder.resolve() / "file")


def write_text(what: str, path: Path, text: str) -> None:
    """Write a text file atomically. ``ConfigurationError`` if it cannot be written."""
    # File names in a report may not be valid text; their bytes are escaped.
    write_bytes(what, path, text.encode("utf-8", "backslashreplace"))


def write_bytes(what: str, path: Path, data: bytes) -> None:
    """Write a file atomically. ``ConfigurationError`` if it cannot be written."""
    with writing(what, path), atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _trial_write(target: Path) -> None:
    """Write a block beside ``target`` and remove it."""
    with workspace(target) as folder:
        (folder / "trial").write_bytes(bytes(_TRIAL_BYTES))
        if target.exists():
            try:
                # A bind-mounted file cannot be replaced; linking it fails with EXDEV.
                os.link(target, folder / "same")
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise OSError(errno.EXDEV, "the file itself is a mount point and cannot be replaced") from error
