"""To the model's size: Pillow's bilinear filter with anti-aliasing, whose support grows with the reduction.

Images of 8 bits are resized as a whole and rounded to 8 bits, images of more bits strip by strip in float32.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

__all__ = ["STRIP_PIXELS", "pixel_array", "resize_rgb", "resize_strips", "strips"]

STRIP_PIXELS = 2**20
"""Pixels that are worked on at a time where whole images would take too much memory."""


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """The horizontal strips of an image of about ``STRIP_PIXELS`` each: first row, and the row after the last."""
    rows = max(1, STRIP_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def pixel_array(image: Image.Image) -> np.ndarray:
    """A decoded image's values, writable: ``(height, width)`` or ``(height, width, channels)``."""
    parts = (np.asarray(image.crop((0, top, image.width, bottom))) for top, bottom in strips(*image.size))
    first = next(parts)
    values = np.empty((image.height, *first.shape[1:]), first.dtype)
    values[: len(first)], top = first, len(first)
    for part in parts:
        values[top : top + len(part)] = part
        top += len(part)
    return values


def resize_rgb(image: Image.Image, side: int) -> Image.Image:
    """An 8-bit image at ``side`` × ``side``; one of that size is returned as it is."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def resize_strips(values: Iterable[np.ndarray], side: int) -> list[Image.Image]:
    """An image that comes in strips ``(rows, width, channels)`` at ``side`` × ``side``: one float image a channel.

    The filter is separable, and Pillow applies it along the rows first: that needs no other strip.
    """
    narrow: list[list[np.ndarray]] = []
    for strip in values:
        channels = [Image.fromarray(channel) for channel in np.moveaxis(strip, 2, 0).astype(np.float32)]
        size = (side, len(strip))
        narrow.append([np.asarray(channel.resize(size, Image.Resampling.BILINEAR)) for channel in channels])
    columns = [Image.fromarray(np.concatenate(parts)) for parts in zip(*narrow, strict=True)]
    return [column.resize((side, side), Image.Resampling.BILINEAR) for column in columns]
