"""How much room the files of a folder take."""

import contextlib
import os
from pathlib import Path

__all__ = ["bytes_below"]


def bytes_below(folder: Path) -> int:
    """The size of all files below a folder, links not followed; 0 if there is no such folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total
