"""File names, which may be any bytes, as printable text and in natural order."""

import os
import re
import unicodedata
from pathlib import Path

__all__ = ["as_line", "as_text", "natural_key"]

_UNSHOWN = frozenset({"Cc", "Zl", "Zp"})
"""Unicode categories that break lines or control terminals: controls, line and paragraph separators."""


def as_text(path: Path | str) -> str:
    """A path as valid Unicode: bytes that are not UTF-8 appear as ``\\xNN``."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate, from JSON; file systems never give one
        raw = str(path).encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def as_line(path: Path | str) -> str:
    """A path for display on one line: valid Unicode, control characters as ``\\n``, ``\\x1b`` and so on."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNSHOWN else character
        for character in as_text(path)
    )


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key for natural order: numbers by value, case-insensitive; ties by the name itself."""
    parts: list[str | int] = list(re.split("([0-9]+)", name.casefold()))
    parts[1::2] = map(int, parts[1::2])
    return parts, name
