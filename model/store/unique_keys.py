"""JSON in which a key may come only once."""

from typing import Any

__all__ = ["unique_keys"]


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary, for ``object_pairs_hook``. ``ValueError`` if a key is duplicate."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a JSON object with a key that comes twice")
    return found
