"""Decoding of images with more than 8 bits per value, as 16-bit values.

Pillow has a 16-bit mode for grey only; of 16-bit RGB it keeps just the high bytes. The low bytes come from a second
decoding with swapped byte order; 16-bit grey with alpha is decoded as four byte channels.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from moleflow.model.errors import UnsupportedImageError
from moleflow.model.images.resizing import pixel_array, strips

__all__ = ["FULL_SCALE", "DeepImage", "check_samples", "is_deep", "stored_as"]

FULL_SCALE = 65535
"""Largest 16-bit value."""

_TWELVE_BITS = 4095

_COLOURS = {"RGB;16": 3, "RGBX;16": 3, "RGBA;16": 4, "RGBa;16": 4}
"""Channels by Pillow's raw mode, without its byte-order suffix."""

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""The byte order that makes Pillow keep the low byte instead of the high one, by the actual order."""

_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
"""TIFF tags (TIFF 6.0, sections 8 and 19)."""


def stored_as(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode of an image that is not loaded yet; empty if it has none."""
    if not image.tile:
        return ""
    arguments = image.tile[0].args
    first = arguments[0] if isinstance(arguments, list | tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def is_deep(stored: str) -> bool:
    """Whether the raw mode ``stored`` has more than 8 bits per value and is supported here."""
    return stored[:-1] in (*_COLOURS, "LA;16") or (stored.startswith(("I;16", "I;12")) and not stored.endswith("S"))


def check_samples(image: ImageFile.ImageFile, name: str) -> None:
    """Raise ``UnsupportedImageError`` for value types that Pillow would misread."""
    stored, problem = stored_as(image), ""
    if stored.startswith("CMYK;16"):
        problem = "16-bit CMYK values"
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        if any(kind != 1 for kind in image.tag_v2.get(_SAMPLE_FORMAT, (1,))):
            problem = "signed or floating-point values"
        elif image.tag_v2.get(_PLANAR, 1) != 1 and max(image.tag_v2.get(_BITS, (1,))) > 8:
            problem = "16-bit colours in separate planes"
    if problem:
        raise UnsupportedImageError(
            f"{name} has {problem}, which are not supported; save it as 8-bit or 16-bit grey or RGB."
        )


@dataclass(frozen=True, slots=True)
class DeepImage:
    """A decoded image with more than 8 bits per value. TIFFs are upright, other formats as stored.

    ``layers`` are one or two arrays with the bytes of the values; ``stored`` is Pillow's raw mode.
    """

    layers: tuple[np.ndarray, ...]
    stored: str
    key: tuple[int, ...] | None
    is_inverted: bool

    @classmethod
    def load(cls, image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]) -> "DeepImage":
        """Decode an opened ``image``; ``reopen`` opens the same file again."""
        stored = stored_as(image)
        key = image.info.pop("transparency", None)  # Pillow handles 8-bit colour keys only
        inverted = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
        images = [image]
        if stored.startswith("LA;16"):
            _store_as(image, "RGBA")
        elif stored[:-1] in _COLOURS:
            # Keep premultiplied colours: Pillow would divide their high bytes by alpha.
            _store_as(image, stored.replace("RGBa", "RGBA"))
            low = reopen()
            _store_as(low, stored.replace("RGBa", "RGBA")[:-1] + _OTHER_ORDER[stored[-1]])
            images.append(low)
        # One at a time: decoding takes more memory than the values themselves.
        layers = tuple(map(_loaded, images))
        return cls(layers, stored, (key,) if isinstance(key, int) else key, inverted)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as decoded."""
        height, width = self.layers[0].shape[:2]
        return width, height

    def strips(self) -> Iterator[np.ndarray]:
        """The values ``(rows, width, 1 or 3)`` uint16 in 0…65535, strip by strip, composited on white."""
        for top, bottom in strips(*self.size):
            yield self._on_white(self._values([layer[top:bottom] for layer in self.layers]))

    def to_rgb(self, white_level: int) -> Image.Image:
        """An 8-bit RGB image: 0…``white_level`` is scaled to 0…255 and rounded; larger values are clipped."""
        canvas, top = Image.new("RGB", self.size), 0
        for values in self.strips():
            levels = (values.astype(np.uint32) * 255 + white_level // 2) // white_level
            strip = np.minimum(levels, 255).astype(np.uint8)
            canvas.paste(Image.fromarray(np.repeat(strip, 3, 2) if strip.shape[2] == 1 else strip), (0, top))
            top += len(strip)
        return canvas

    def _values(self, layers: list[np.ndarray]) -> np.ndarray:
        """One strip's values, with alpha if the image has it: ``(rows, width, 1…4)`` uint16."""
        if self.stored.startswith("LA;16"):
            pairs = layers[0].astype(np.uint16)
            return pairs[..., ::2] << 8 | pairs[..., 1::2]
        if len(layers) == 2:
            high, low = (layer.astype(np.uint16) for layer in layers)
            return high << 8 | low
        values = layers[0].astype(np.uint16)[..., None]
        if self.stored.startswith("I;12"):
            values = ((values.astype(np.uint32) * FULL_SCALE + _TWELVE_BITS // 2) // _TWELVE_BITS).astype(np.uint16)
        return FULL_SCALE - values if self.is_inverted else values

    def _on_white(self, values: np.ndarray) -> np.ndarray:
        if self.key is not None:
            is_key = (values == np.array(self.key, np.uint16)).all(2, keepdims=True)
            return np.where(is_key, np.uint16(FULL_SCALE), values)
        if values.shape[2] in (1, 3):
            return values
        colours, alpha = values[..., :-1].astype(np.float32), values[..., -1:].astype(np.float32) / FULL_SCALE
        if not self.stored.startswith("RGBa"):
            colours *= alpha
        return np.rint(np.minimum(colours + FULL_SCALE * (1 - alpha), FULL_SCALE)).astype(np.uint16)


def _loaded(image: ImageFile.ImageFile) -> np.ndarray:
    """The values of an opened image. Closes it; its metadata stay available."""
    image.load()
    with suppress(Exception):  # whoever needs the metadata handles damage
        image.getexif()  # cached; in a PNG it may follow the pixels
    values = pixel_array(image)
    image.close()
    return values


def _store_as(image: ImageFile.ImageFile, stored: str) -> None:
    """Override the raw mode of an opened image."""
    for number, tile in enumerate(image.tile):
        arguments = tile.args
        changed = (stored, *arguments[1:]) if isinstance(arguments, list | tuple) else stored
        image.tile[number] = tile._replace(args=changed)
