"""What the benchmarks' command lines share: whole numbers from 1, and results as JSON with the table beside it."""

import argparse
import json
from pathlib import Path
from typing import Any

from model.atomic import atomic_write

__all__ = ["positive", "write_result"]


def positive(text: str) -> int:
    """A whole number from 1, for ``argparse``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def write_result(path: Path, result: Any, table: str) -> None:
    """Write ``result`` as JSON to ``path``, and its Markdown ``table`` beside it, with the suffix ``.md``."""
    for target, text in ((path, json.dumps(result, indent=1) + "\n"), (path.with_suffix(".md"), table)):
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
