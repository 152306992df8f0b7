"""The progress of a training command, so that the same command continues after an interruption; and its lock."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from moleflow.model.errors import ConfigurationError
from moleflow.model.files.atomic import target_of
from moleflow.model.files.file_lock import has_no_locks, lock_open_file, release_lock, try_lock
from moleflow.model.files.outputs import check_output, reason, remedy, write_text, writing
from moleflow.model.files.regular_file import read_regular_file
from moleflow.training.fit.cross_fitting import FoldMaps

__all__ = ["HISTORY", "Journal", "exclusive", "side_file"]

HISTORY = ".history.jsonl"
"""Suffix of the file that records every epoch."""


def side_file(checkpoint: Path, suffix: str) -> Path:
    """The path of a file beside ``checkpoint``, links resolved, with its name plus ``suffix``.

    Raises:
        ConfigurationError: the path cannot be resolved to a writable file.
    """
    with writing("the checkpoint", checkpoint):
        target = target_of(checkpoint)
    return target.with_name(target.name + suffix)


class Journal(BaseModel):
    """The progress of a ``train`` command, identified by its ``fingerprint``.

    ``done`` are its finished tasks; ``folds`` belong to the task in progress.
    """

    fingerprint: str = ""
    done: list[str] = []
    folds: FoldMaps | None = None

    @classmethod
    def find(cls, path: Path) -> Self:
        """The journal at ``path``; an empty one if there is none, or it is damaged.

        Raises:
            ConfigurationError: it exists and cannot be read.
        """
        try:
            return cls.model_validate_json(read_regular_file(path))
        except (FileNotFoundError, ValueError):
            return cls()
        except OSError as error:
            raise ConfigurationError(
                f"{str(path)!r}, which says what was trained, cannot be read ({reason(error)}); check its permissions, "
                "or remove it to start over."
            ) from error

    def write(self, path: Path) -> None:
        """Write atomically. ``ConfigurationError`` if it cannot be written."""
        write_text("the journal of training", path, self.model_dump_json())


@contextmanager
def exclusive(checkpoint: Path) -> Iterator[None]:
    """Lock a checkpoint against a second trainer, whatever path it uses. The lock ends with the process.

    There are two locks: a file beside the checkpoint, since the checkpoint does not exist yet or is replaced with every
    product, and the checkpoint itself, which may have hard links in other folders.

    Raises:
        ConfigurationError: another process is training into this checkpoint, or its folder is not writable.
    """
    check_output("the checkpoint", checkpoint)
    check_output("the history of training", side_file(checkpoint, HISTORY))  # the longest name beside it
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
                    f"files in {str(path.parent)!r} cannot be locked ({reason(error)}), so a second training could not "
                    "be prevented; choose a --checkpoint on a local disk."
                ) from error
            raise ConfigurationError(
                f"{str(path)!r}, which prevents a second training, cannot be locked ({reason(error)}); remove it if "
                f"no training runs, or {remedy(error)}."
            ) from error
        if taken:
            raise ConfigurationError(
                f"another process is training into {str(checkpoint)!r}; wait for it, or choose another --checkpoint."
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
