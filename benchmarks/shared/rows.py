"""Rows of a JSONL file: what a long study has measured so far."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["append_row", "read_rows"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows written so far. A last line that a kill cut off is removed from the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(path, len(whole.encode()))
    return [json.loads(line) for line in whole.splitlines()]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one row; it is on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
