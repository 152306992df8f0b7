"""Which part of their range the values of a product's 16-bit images use, and what to say of images that use another.

A file of 16 bits does not say how many of them its sensor has: 10 or 12 bits that lie at the low end would all be
nearly black if 65535 was taken for white. So the white level is chosen from a product's good images and kept with it.
Images of 8 bits are what they are, 0…255, and nothing here changes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moleflow.model.images.bit_depth import FULL_SCALE

__all__ = ["SENSOR_BITS", "Views", "range_warnings", "scale_values", "white_level"]

SENSOR_BITS = (8, 10, 12, 14, 16)
"""Depths that sensors and their converters have."""

_DARK = 4
"""An image whose brightest value is below a quarter of the white level lacks two bits: it may be of another depth."""


def white_level(peak: int) -> int:
    """The white level for images whose largest value is ``peak``: the largest value of the least fitting depth."""
    return next((1 << bits) - 1 for bits in SENSOR_BITS if peak < 1 << bits)


def scale_values(image: np.ndarray, white: int | None) -> np.ndarray:
    """A uint16 image with 0…``white`` as 0…255 in float32, larger values cut off; a uint8 image as it is.

    Without a white level, as in checkpoints that have none, all 16 bits are the range.
    """
    if image.dtype != np.uint16:
        return image
    level = white or FULL_SCALE
    return np.minimum(image, np.uint16(level)).astype(np.float32) * np.float32(255 / level)


def range_warnings(image: np.ndarray, white: int | None, product: str) -> tuple[str, ...]:
    """What is to be told of an image at the model's size, judged as ``product`` with that white level."""
    if image.dtype != np.uint16:
        if white is None:
            return ()
        return (
            f"the image has 8-bit values, but {product!r} was learned from 16-bit images with {white} as white; "
            "255 was taken for white",
        )
    if white is None:
        return (
            f"the image has 16-bit values, but {product!r} was learned without any (from 8-bit images, or by an older "
            f"version); {FULL_SCALE} was taken for white",
        )
    peak, above = int(image.max()), float((image > white).mean())
    if above:
        return (
            f"{max(above, 0.001):.1%} of the image's values are above {white}, the white level that {product!r} was "
            f"learned with (up to {peak}); they were cut off",
        )
    if peak * _DARK <= white:
        return (
            f"the image's largest value is {peak}, far below {white}, the white level that {product!r} was learned "
            "with; is it of another bit depth, or very dark?",
        )
    return ()


@dataclass(frozen=True, slots=True)
class Views:
    """A batch as the products see it: each image once for every range that counts for it.

    ``images`` have the model's size, uint8 or uint16. ``levels`` are the views over 0…255, uint8 or float32. ``rows``
    ``(images, products)`` tells which of them is compared with which product; ``None`` where each image has one view,
    in order.
    """

    images: list[np.ndarray]
    levels: list[np.ndarray]
    rows: np.ndarray | None

    @classmethod
    def of(cls, images: Sequence[np.ndarray], whites: Sequence[int | None], named: Sequence[int | None]) -> "Views":
        """The views of images at the model's size.

        ``whites`` are the products' levels; ``named[i]`` is the only product that counts for image ``i``, if any.
        """
        if all(image.dtype != np.uint16 for image in images):
            return cls(list(images), list(images), None)
        products = [white or FULL_SCALE for white in whites]
        levels: list[np.ndarray] = []
        rows = np.empty((len(images), len(products)), np.int64)
        for number, (image, name) in enumerate(zip(images, named, strict=True)):
            wanted = products if name is None else [products[name]] * len(products)
            ranges = sorted(set(wanted)) if image.dtype == np.uint16 else [FULL_SCALE]
            place = {white: len(levels) + position for position, white in enumerate(ranges)}
            levels += [scale_values(image, white) for white in ranges]
            rows[number] = [place.get(white, len(levels) - 1) for white in wanted]
        return cls(list(images), levels, rows if len(levels) > len(images) else None)

    def row(self, image: int, product: int) -> int:
        """Which view of an image a product sees."""
        return image if self.rows is None else int(self.rows[image, product])
