"""Defect regions: connected components of the anomaly map above the pixel threshold."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from moleflow.model.verdict.records import MAX_REGIONS

__all__ = ["MAX_REGIONS", "Region", "find_regions"]

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""8-connectivity."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected component, in image pixels: ``x`` from the left, ``y`` from the top.

    The bounding box has its corner at (``x``, ``y``) and spans ``width`` columns and ``height`` rows.
    ``area_fraction`` is the component's fraction of the image area, in (0, 1]. ``peak`` is the highest map value
    inside, in nats, at pixel (``peak_x``, ``peak_y``).
    """

    x: int
    y: int
    width: int
    height: int
    area_fraction: float
    peak: float
    peak_x: int
    peak_y: int


def find_regions(
    anomaly_map: np.ndarray, threshold: float, height: int, width: int, inspected: np.ndarray | None = None
) -> tuple[Region, ...]:
    """Connected components of ``anomaly_map`` ``(rows, columns)`` above ``threshold``, in pixels of an image of
    ``height`` × ``width``; only where ``inspected``, a mask of the map's shape.

    If the sizes differ, boxes are widened to whole image pixels. At most ``MAX_REGIONS``, the highest peak first.
    """
    above = anomaly_map > threshold
    if inspected is not None:
        above &= inspected
    labels, count = ndimage.label(above, structure=_EIGHT_NEIGHBOURS)
    if not count:
        return ()
    # ndimage.maximum sorts the whole map, which takes longer than all the rest.
    inside = labels > 0
    peaks = np.full(count + 1, -np.inf, anomaly_map.dtype)
    np.maximum.at(peaks, labels[inside], anomaly_map[inside])
    areas = np.bincount(labels.ravel())
    boxes = ndimage.find_objects(labels)
    return tuple(
        _region(anomaly_map, labels, boxes[index], index + 1, areas[index + 1], height, width)
        for index in np.argsort(-peaks[1:], kind="stable")[:MAX_REGIONS]
    )


def _region(
    anomaly_map: np.ndarray,
    labels: np.ndarray,
    box: tuple[slice, slice],
    number: int,
    area: int,
    height: int,
    width: int,
) -> Region:
    """The region of label ``number``, with its bounding box and area in map pixels."""
    inside = np.where(labels[box] == number, anomaly_map[box], -np.inf)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    rows, columns = anomaly_map.shape
    top, bottom = _whole_pixels(box[0], rows, height)
    left, right = _whole_pixels(box[1], columns, width)
    return Region(
        x=left,
        y=top,
        width=right - left,
        height=bottom - top,
        area_fraction=float(area / anomaly_map.size),
        peak=float(inside[row, column]),
        peak_x=_centre(box[1].start + int(column), columns, width),
        peak_y=_centre(box[0].start + int(row), rows, height),
    )


def _whole_pixels(span: slice, cells: int, size: int) -> tuple[int, int]:
    """The half-open range of image pixels that a span of map cells touches."""
    return span.start * size // cells, -(-span.stop * size // cells)


def _centre(cell: int, cells: int, size: int) -> int:
    """The image pixel that contains the centre of a map cell."""
    return (2 * cell + 1) * size // (2 * cells)
