"""A file with the inspected areas of products that are to be learned."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from moleflow.model.errors import ConfigurationError, ImageError, one_line
from moleflow.model.files.outputs import reason
from moleflow.model.files.regular_file import read_regular_file
from moleflow.model.images.decode import open_rgb
from moleflow.model.names import ProductName
from moleflow.model.verdict.area import Outlines
from moleflow.model.verdict.outlines import bright

__all__ = ["Drawings", "check_areas", "digest_drawings", "read_areas"]

Drawings = Mapping[str, Outlines | np.ndarray | None]
"""What each product is to be learned from: polygons, a mask ``(height, width)`` bool, or ``None`` for the whole
image."""


class _Entry(Outlines):
    """One product of the file: polygons, or the path of a mask image relative to the file."""

    mask: str | None = None


_FILE: TypeAdapter[dict[str, _Entry | None]] = TypeAdapter(dict[ProductName, _Entry | None])


def read_areas(path: Path) -> Drawings:
    """The areas in a JSON file: an object with an entry for each product, which is an object with ``inspect`` and
    ``ignore`` (``Outlines``), one with ``mask``, or ``null``.

    Raises:
        ConfigurationError: the file or a mask cannot be read, or is no such object.
    """
    try:
        entries = _FILE.validate_json(read_regular_file(path))
    except OSError as error:
        raise ConfigurationError(f"the areas {str(path)!r} cannot be read ({reason(error)}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        example = json.dumps({"grid": {"ignore": [[[0, 0], [0.2, 0], [0, 0.3]]]}})
        raise ConfigurationError(
            f"the areas {str(path)!r} cannot be used: {one_line(place)}: {said}; write for example {example}."
        ) from error
    return {name: _drawing(path, name, entry) for name, entry in entries.items()}


def check_areas(drawings: Drawings, tasks: Collection[str]) -> None:
    """Raise ``ConfigurationError`` for an area of a product that is none of ``tasks``."""
    unknown = sorted(set(drawings) - set(tasks))
    if unknown:
        raise ConfigurationError(
            f"there is an area of {unknown[0]!r}, which is not learned now; leave it out, or name the product as its "
            "folder."
        )


def digest_drawings(drawings: Drawings) -> str:
    """A SHA-256 of what is drawn."""
    digest = hashlib.sha256()
    for name, drawing in sorted(drawings.items()):
        drawn = f"{drawing.shape}|{drawing.tobytes().hex()}" if isinstance(drawing, np.ndarray) else repr(drawing)
        digest.update(f"{name}|{drawn}\n".encode())
    return digest.hexdigest()


def _drawing(path: Path, name: str, entry: _Entry | None) -> Outlines | np.ndarray | None:
    if entry is None:
        return None
    if entry.mask is None:
        return Outlines(inspect=entry.inspect, ignore=entry.ignore)
    if entry.inspect or entry.ignore:
        raise ConfigurationError(f"the area of {name!r} in {str(path)!r} has a mask and polygons; give one of them.")
    try:
        return bright(open_rgb(path.parent / entry.mask))
    except (OSError, ImageError) as error:
        raise ConfigurationError(
            f"the mask of {name!r} in {str(path)!r} cannot be read ({one_line(error)})."
        ) from error
