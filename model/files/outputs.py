"""Files that a command writes for its user: checked before the work that fills them, written whole, one clear error."""

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
"""Written to learn whether there is room for anything at all: one block of most file systems."""

_WHAT_TO_DO = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room there (the quota is used up), or choose another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "name a file",
    errno.ELOOP: "mend the symbolic links, which run in a circle",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EXDEV: "mount the folder that it lies in, not the file alone",
    errno.EBUSY: "mount the folder that it lies in, not the file alone",
}


def reason(error: OSError) -> str:
    """Why a file could not be used, without its name."""
    return error.strerror or str(error) or type(error).__name__


def remedy(error: OSError) -> str:
    """Advice on an error of the file system, to be put after what went wrong."""
    if error.errno == errno.ENOENT:
        try:
            Path.cwd()
        except FileNotFoundError:
            return "the current folder was removed: change to another one"
    return _WHAT_TO_DO.get(error.errno or 0, "choose another place")


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Whatever goes wrong while ``path`` is written becomes one ``ConfigurationError`` that calls it ``what``."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{what} {str(path)!r} cannot be written ({reason(error)}); {remedy(error)}."
        ) from error


def check_output(what: str, path: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Make sure that a file can be written to ``path``; what is there is left alone, and missing folders are made.

    Raises:
        ConfigurationError: it cannot, or the file is one of ``inputs``.
    """
    with writing(what, path):
        target = target_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _try_out(target)
    for source in inputs:
        with contextlib.suppress(OSError):
            if target.samefile(source):
                raise ConfigurationError(
                    f"{what} {str(path)!r} is the file {str(source)!r} that is read; choose another name."
                )


def check_output_folder(what: str, folder: Path) -> None:
    """Make sure that files can be written into ``folder``, which is made where it is missing.

    Raises:
        ConfigurationError: they cannot.
    """
    with writing(what, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder)) from error
        _try_out(folder.resolve() / "file")


def write_text(what: str, path: Path, text: str) -> None:
    """Write a text file as a whole. ``ConfigurationError`` when it cannot be written."""
    # Names of files need not be text; one in a report is better shown with its odd bytes escaped than not at all.
    write_bytes(what, path, text.encode("utf-8", "backslashreplace"))


def write_bytes(what: str, path: Path, data: bytes) -> None:
    """Write a file as a whole. ``ConfigurationError`` when it cannot be written."""
    with writing(what, path), atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _try_out(target: Path) -> None:
    """Write a little beside ``target``, and take it away again."""
    with workspace(target) as folder:
        (folder / "trial").write_bytes(bytes(_TRIAL_BYTES))
        if target.exists():
            try:
                # A file that is mounted on its own cannot be replaced. The kernel tells so when it is to be linked.
                os.link(target, folder / "same")
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise OSError(errno.EXDEV, "it is mounted on its own and cannot be replaced") from error
