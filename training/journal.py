"""What an interrupted command had done, so that the same command, given again, goes on instead of starting over."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from model.atomic import atomic_write
from model.errors import ConfigurationError

__all__ = ["Journal", "exclusive", "side_file"]


def side_file(checkpoint: Path, suffix: str) -> Path:
    """A file that accompanies ``checkpoint``: its whole name and then ``suffix``."""
    return checkpoint.with_name(checkpoint.name + suffix)


class Journal(BaseModel):
    """That a ``train`` command, told by its ``fingerprint``, has begun, and which of its tasks are done."""

    fingerprint: str
    done: list[str] = []

    @classmethod
    def find(cls, path: Path, fingerprint: str) -> Self | None:
        """The journal at ``path`` if the same command left it; one that cannot be read belongs to no command."""
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if found.fingerprint == fingerprint else None

    def write(self, path: Path) -> None:
        """Write atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.model_dump_json(), encoding="utf-8")


@contextmanager
def exclusive(checkpoint: Path) -> Iterator[None]:
    """Keep a second trainer off the same checkpoint. The lock goes with the process, whatever ends it.

    Raises:
        ConfigurationError: another process is training into this checkpoint, or its folder cannot be written to.
    """
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        lock = side_file(checkpoint, ".lock").open("w")
    except OSError as error:
        raise ConfigurationError(
            f"{str(checkpoint.parent)!r} cannot take a checkpoint ({error.strerror}); choose another --checkpoint."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another process is training into {str(checkpoint)!r}; wait for it, or choose another --checkpoint."
            ) from error
        yield
