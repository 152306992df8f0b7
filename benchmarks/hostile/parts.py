"""Helpers of the makers of hostile images."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["LARGE", "by_name", "encoded", "fill", "noise", "plain"]

LARGE = (6320, 6320)
"""Width and height just below 40 megapixels, the service's default limit."""


def by_name(*makers: Callable[[int], bytes]) -> dict[str, Callable[[int], bytes]]:
    """Makers by the names of their functions."""
    return {maker.__name__: maker for maker in makers}


def fill(unit: bytes, size: int) -> bytes:
    """``unit`` as often as fits into ``size`` bytes, at least once."""
    return unit * max(1, size // len(unit))


@functools.lru_cache(4)
def noise(size: int) -> bytes:
    """Random bytes from a fixed seed."""
    return np.random.default_rng(0).bytes(size)


def plain(width: int, height: int, mode: str = "L") -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, (width, height), 90 if mode == "L" else (90, 100, 110, 120)[: len(mode)])


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()
