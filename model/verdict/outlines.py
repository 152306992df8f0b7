"""From polygons or a mask image to the patches that are inspected."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from moleflow.model.errors import TaskError
from moleflow.model.verdict.area import Area, Outlines, Polygon

__all__ = ["INSIDE_FRACTION", "area_of", "bright"]

INSIDE_FRACTION = 0.5
"""A patch is inspected if at least this fraction of it is."""

_SAMPLES = 16
"""Samples along a side of a patch; fewer on grids so fine that there would be more than ``_MOST_SAMPLES`` in all."""

_MOST_SAMPLES = 2048

_HALF_WHITE = 3 * 255 / 2
"""Sum of the channels of a pixel that is half as bright as white."""


def area_of(drawn: Outlines | np.ndarray, grid: tuple[int, int], least: int, within: np.ndarray | None = None) -> Area:
    """The area of a product with a ``grid`` of (rows, columns) of patches.

    ``drawn`` are polygons, or a mask ``(height, width)`` bool of any size that is true where an image is inspected and
    covers the whole of it. ``within`` ``(H, W)`` are the patches that can be inspected at all.

    Raises:
        TaskError: fewer than ``least`` patches are inspected, or none is ignored.
    """
    rows, columns = grid
    outlines, sampled = (drawn, _drawn(drawn, grid)) if isinstance(drawn, Outlines) else (None, drawn)
    # The box filter is the mean over a patch, also where a patch ends within a pixel of the mask.
    fractions = Image.fromarray(sampled.astype(np.float32)).resize((columns, rows), Image.Resampling.BOX)
    mask = np.asarray(fractions) >= INSIDE_FRACTION
    if within is not None:
        mask &= within
    count, patches = int(mask.sum()), f"{rows} × {columns} patches"
    if count < least:
        raise TaskError(
            f"the area inspects {count} of {patches}, and a score needs {least}; a patch counts if at least half of it "
            "is inspected. Ignore less."
        )
    if (mask == (True if within is None else within)).all():
        raise TaskError(
            f"the area inspects all {count} of {patches} that were learned, which changes nothing; a patch is ignored "
            "if more than half of it is. Ignore more, or clear the area."
        )
    return Area.of(mask, outlines)


def bright(image: np.ndarray) -> np.ndarray:
    """What a mask image inspects: ``(height, width, 3)`` uint8 to bool, true where it is at least half as bright as
    white."""
    return image.sum(2, dtype=np.uint16) >= _HALF_WHITE


def _drawn(outlines: Outlines, grid: tuple[int, int]) -> np.ndarray:
    """What is inspected, ``(height, width)`` bool, at several samples a patch."""
    height, width = (side * max(1, min(_SAMPLES, _MOST_SAMPLES // side)) for side in grid)
    inspected = _union(outlines.inspect, height, width) if outlines.inspect else np.ones((height, width), bool)
    return inspected & ~_union(outlines.ignore, height, width)


def _union(polygons: Sequence[Polygon], height: int, width: int) -> np.ndarray:
    found = np.zeros((height, width), bool)
    for polygon in polygons:
        found |= _inside(polygon, height, width)
    return found


def _inside(polygon: Polygon, height: int, width: int) -> np.ndarray:
    """Which samples lie inside by the even-odd rule: an odd number of edges passes on their left. Pillow's own
    polygons include the pixels that an edge touches, and so are larger."""
    xs, ys = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    passed = np.zeros((height, width + 1), np.int32)
    for (left, top), (right, bottom) in pairwise((*polygon, polygon[0])):
        (rows,) = np.nonzero((top <= ys) != (bottom <= ys))
        if len(rows):
            edge = left + (ys[rows] - top) * ((right - left) / (bottom - top))
            passed[rows, np.searchsorted(xs, edge, side="right")] += 1
    return passed.cumsum(1)[:, :-1] % 2 == 1
