"""One writer of a checkpoint at a time: training, and commands that change its products."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from moleflow.model.errors import CheckpointInUseError, ConfigurationError
from moleflow.model.files.atomic import target_of
from moleflow.model.files.file_lock import has_no_locks, lock_open_file, release_lock, try_lock
from moleflow.model.files.outputs import check_output, reason, remedy, writing

__all__ = ["exclusive", "side_file"]

_LONGEST_SUFFIX = ".history.jsonl"
"""Of the files that writers put beside a checkpoint."""


def side_file(checkpoint: Path, suffix: str) -> Path:
    """The path of a file beside ``checkpoint``, links resolved, with its name plus ``suffix``.

    Raises:
        ConfigurationError: the path cannot be resolved to a writable file.
    """
    with writing("the checkpoint", checkpoint):
        target = target_of(checkpoint)
    return target.with_name(target.name + suffix)


@contextmanager
def exclusive(checkpoint: Path) -> Iterator[None]:
    """Lock a checkpoint against a second writer, whatever path it uses. The lock ends with the process.

    There are two locks: a file beside the checkpoint, since the checkpoint does not exist yet or is replaced with every
    product, and the checkpoint itself, which may have hard links in other folders.

    Raises:
        CheckpointInUseError: another process is training into this checkpoint or changing it.
        ConfigurationError: its folder is not writable.
    """
    check_output("the checkpoint", checkpoint)
    check_output("the history of training", side_file(checkpoint, _LONGEST_SUFFIX))
    path = side_file(checkpoint, ".lock")
    with ExitStack() as stack:
        try:
            lock = try_lock(path)
            if lock is not None:
                stack.callback(release_lock, path, lock)
            taken = lock is None or not _lock_itself(target_of(checkpoint), stack)
        except OSError as error:
            if has_no_locks(error):
                raise ConfigurationError(
                    f"files in {str(path.parent)!r} cannot be locked ({reason(error)}), so a second writer could not "
                    "be prevented; use a checkpoint on a local disk."
                ) from error
            raise ConfigurationError(
                f"{str(path)!r}, which prevents a second writer, cannot be locked ({reason(error)}); remove it if no "
                f"training runs, or {remedy(error)}."
            ) from error
        if taken:
            raise CheckpointInUseError(
                f"another process is training into {str(checkpoint)!r}, or changing it; wait for it, or use another "
                "checkpoint."
            )
        yield


def _lock_itself(checkpoint: Path, stack: ExitStack) -> bool:
    """Lock the checkpoint's own file, if it exists, until ``stack`` closes; false if another process holds it."""
    try:
        try:
            handle = os.open(checkpoint, os.O_RDWR | os.O_CLOEXEC)  # network shares lock only what may be written
        except PermissionError:
            handle = os.open(checkpoint, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    stack.callback(os.close, handle)
    return lock_open_file(handle)
