"""The progress of a training command, so that the same command continues after an interruption."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel

from moleflow.model.errors import ConfigurationError
from moleflow.model.files.outputs import reason, write_text
from moleflow.model.files.regular_file import read_regular_file
from moleflow.training.fit.cross_fitting import FoldMaps

__all__ = ["HISTORY", "Journal"]

HISTORY = ".history.jsonl"
"""Suffix of the file that records every epoch."""


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
