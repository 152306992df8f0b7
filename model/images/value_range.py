"""White levels: the value range that a product's 16-bit images use.

A 16-bit file does not state its sensor's bit depth, and 10 or 12 bits in the low end would be nearly black with 65535
as white. The white level is therefore estimated from a product's good images and stored with it. 8-bit images are not
affected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moleflow.model.images.bit_depth import FULL_SCALE

__all__ = ["SENSOR_BITS", "Views", "range_warnings", "scale_values", "white_level"]

SENSOR_BITS = (8, 10, 12, 14, 16)
"""Bit depths of sensors and analog-to-digital converters."""

_DARK = 4
"""Below a quarter of the white level an image lacks two bits: it may have another bit depth."""


def white_level(peak: int) -> int:
    """The white level for images whose largest value is ``peak``: the maximum of the smallest bit depth that fits."""
    return next((1 << bits) - 1 for bits in SENSOR_BITS if peak < 1 << bits)


def scale_values(image: np.ndarray, white: int | None) -> np.ndarray:
    """Scale a uint16 image from 0…``white`` to 0…255 in float32, clipping larger values; a uint8 image is unchanged.

    Without a white level, as for products learned from 8-bit images, the full 16-bit range is used.
    """
    if image.dtype != np.uint16:
        return image
    level = white or FULL_SCALE
    return np.minimum(image, np.uint16(level)).astype(np.float32) * np.float32(255 / level)


def range_warnings(image: np.ndarray, white: int | None, product: str) -> tuple[str, ...]:
    """Warnings if an image's value range does not match ``product``, which has the white level ``white``."""
    if image.dtype != np.uint16:
        if white is None:
            return ()
        return (
            f"the image has 8-bit values, but {product!r} was learned from 16-bit images with white level {white}; "
            "255 was used as white",
        )
    if white is None:
        return (
            f"the image has 16-bit values, but {product!r} has no white level (it was learned from 8-bit images, or by "
            f"an older version); {FULL_SCALE} was used as white",
        )
    peak, above = int(image.max()), float((image > white).mean())
    if above:
        return (
            f"{max(above, 0.001):.1%} of the image's values are above {white}, the white level of {product!r} "
            f"(largest: {peak}); they were clipped",
        )
    if peak * _DARK <= white:
        return (
            f"the image's largest value is {peak}, far below {white}, the white level of {product!r}; it may have "
            "another bit depth, or be very dark",
        )
    return ()


@dataclass(frozen=True, slots=True)
class Views:
    """A batch as the products see it: each image once per white level that applies to it.

    ``images`` have the model's size, uint8 or uint16. ``levels`` are the views in 0…255, uint8 or float32. ``rows``
    ``(images, products)`` is the index of the view that each product sees; ``None`` if every image has one view, in
    order.
    """

    images: list[np.ndarray]
    levels: list[np.ndarray]
    rows: np.ndarray | None

    @classmethod
    def of(cls, images: Sequence[np.ndarray], whites: Sequence[int | None], named: Sequence[int | None]) -> "Views":
        """The views of images at the model's size.

        ``whites`` are the products' white levels; if ``named[i]`` is set, only that product sees image ``i``.
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
        """The index of the view of ``image`` that ``product`` sees."""
        return image if self.rows is None else int(self.rows[image, product])
