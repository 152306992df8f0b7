"""The user's cache, for what can be made again."""

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """Where converted and compiled networks are kept: in ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "moleflow"
