"""What workers hand to the machine of the driver while they learn: the states of unfinished products, and messages.

It runs as a Ray actor on the driver's node. Workers come and go; what they handed in is on the driver's disk, so
another worker, or another run of the driver, continues from it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from moleflow.model.files.outputs import write_bytes

__all__ = ["FOLDS", "STATE", "Keeper", "Message"]

STATE, FOLDS = ".state", ".folds"
"""Endings of the files that an unfinished product leaves: the state after an epoch, and the maps of finished folds."""


class Message(NamedTuple):
    """A line to show, or an event for the history with its values."""

    kind: Literal["line", "event"]
    text: str
    values: dict[str, Any]


class Keeper:
    """Keeps files in ``folder``, and messages until the driver asks for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._messages: list[Message] = []

    def keep(self, name: str, data: bytes) -> None:
        """Write a file atomically. ``ConfigurationError`` if it cannot be written."""
        write_bytes("the state of training", self._folder / name, data)

    def find(self, name: str) -> bytes | None:
        """The content of a file; ``None`` if there is none."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def forget(self, names: Iterable[str]) -> None:
        """Remove files, if they exist."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def say(self, message: Message) -> None:
        """Take a message for the driver."""
        self._messages.append(message)

    def heard(self) -> list[Message]:
        """The messages since the last call."""
        said, self._messages = self._messages, []
        return said
