"""Names of files, which may hold any bytes: as text that can be written anywhere, and in the order people expect."""

import os
import re
import unicodedata
from pathlib import Path

__all__ = ["as_line", "as_text", "natural_key"]

_UNSHOWN = frozenset({"Cc", "Zl", "Zp"})
"""Unicode categories of what would break a line or steer a terminal: controls, line and paragraph separators."""


def as_text(path: Path | str) -> str:
    """A path as valid Unicode: bytes that are no UTF-8 appear as ``\\xNN``."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:  # half a character, which no file system gives but JSON can
        raw = str(path).encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def as_line(path: Path | str) -> str:
    """A path to be shown within a line: valid Unicode, control characters as ``\\n``, ``\\x1b`` and so on."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSHOWN else character
        for character in as_text(path)
    )


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names with numbers by value, capitals ignored; equal ones as they are, so that the order is always one."""
    parts: list[str | int] = list(re.split("([0-9]+)", name.casefold()))
    parts[1::2] = map(int, parts[1::2])
    return parts, name
