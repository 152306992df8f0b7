"""Resizing to the model's size: Pillow's bilinear filter with anti-aliasing (support scales with the reduction).

8-bit images are resized as a whole in 8 bits, images of higher bit depth strip by strip in float32.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

__all__ = ["STRIP_PIXELS", "pixel_array", "resize_rgb", "resize_strips", "strips"]

STRIP_PIXELS = 2**20
"""Pixels per strip, where a copy of the whole image would take too much memory."""


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Horizontal strips of about ``STRIP_PIXELS`` each, as half-open row ranges."""
    rows = max(1, STRIP_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def pixel_array(image: Image.Image) -> np.ndarray:
    """A decoded image's values as a writable array: ``(height, width)`` or ``(height, width, channels)``."""
    parts = (np.asarray(image.crop((0, top, image.width, bottom))) for top, bottom in strips(*image.size))
    first = next(parts)
    values = np.empty((image.height, *first.shape[1:]), first.dtype)
    values[: len(first)], top = first, len(first)
    for part in parts:
        values[top : top + len(part)] = part
        top += len(part)
    return values


def resize_rgb(image: Image.Image, side: int) -> Image.Image:
    """An 8-bit image at ``side`` × ``side``; one of that size is returned unchanged."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def resize_strips(values: Iterable[np.ndarray], side: int) -> list[Image.Image]:
    """An image given in strips ``(rows, width, channels)``, at ``side`` × ``side``: one float image per channel.

    The filter is separable and Pillow applies it horizontally first, which works strip by strip.
    """
    narrow: list[list[np.ndarray]] = []
    for strip in values:
        channels = [Image.fromarray(channel) for channel in np.moveaxis(strip, 2, 0).astype(np.float32)]
        size = (side, len(strip))
        narrow.append([np.asarray(channel.resize(size, Image.Resampling.BILINEAR)) for channel in channels])
    columns = [Image.fromarray(np.concatenate(parts)) for parts in zip(*narrow, strict=True)]
    return [column.resize((side, side), Image.Resampling.BILINEAR) for column in columns]
