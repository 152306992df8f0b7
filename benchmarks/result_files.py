"""What the benchmarks share: whole numbers from 1, ratios and their spread, results as JSON, rows of a JSONL file."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from moleflow.model.files.atomic import atomic_write

__all__ = ["append_row", "positive", "ratios", "read_rows", "spread", "write_result"]


def positive(text: str) -> int:
    """A whole number from 1, for ``argparse``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One ratio a round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and least and greatest in brackets."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def write_result(path: Path, result: Any, table: str) -> None:
    """Write ``result`` as JSON to ``path``, and its Markdown ``table`` beside it, with the suffix ``.md``."""
    for target, text in ((path, json.dumps(result, indent=1) + "\n"), (path.with_suffix(".md"), table)):
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows written so far. A last line that was cut off by a kill is removed from the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(path, len(whole.encode()))
    return [json.loads(line) for line in whole.splitlines()]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one row, on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
