"""Conversion of decoded 8-bit images to RGB.

Uses Pillow's conversions where they follow the formats' specifications; works in strips where more than one copy of the
image would be needed.
"""

from PIL import Image

from moleflow.model.errors import UnsupportedImageError
from moleflow.model.images.resizing import strips

__all__ = ["PLAIN_MODES", "check_mode", "scale_colour_key", "to_rgb"]

ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}) | ALPHA_MODES
# Not included: modes without a known range (32-bit integers, floats), and CIELAB, which needs colour management.

_KEY_SCALES = {"L;2": (3, 85), "L;4": (15, 17), "L": (255, 1), "RGB": (255, 1)}
"""By a PNG's raw mode: the largest stored value, and the factor that expands it to 8 bits."""


def check_mode(image: Image.Image, name: str) -> None:
    """Raise ``UnsupportedImageError`` unless ``image``, called ``name`` in messages, can be converted to RGB."""
    if image.mode not in PLAIN_MODES:
        raise UnsupportedImageError(
            f"{name} has pixel mode {image.mode}, which is not supported; save it as 8-bit or 16-bit grey or RGB."
        )


def scale_colour_key(image: Image.Image, stored: str) -> None:
    """Scale the transparent colour of a PNG of raw mode ``stored`` to its decoded values.

    The tRNS chunk holds it at the file's bit depth, in the low bits of 16 (PNG, third edition, 11.3.1.1); decoding
    expands 2-bit and 4-bit values to 8 bits.
    """
    key = image.info.get("transparency")
    if stored not in _KEY_SCALES or isinstance(key, bytes) or key is None:
        return
    mask, factor = _KEY_SCALES[stored]
    scaled = tuple((value & mask) * factor for value in (key if isinstance(key, tuple) else (key,)))
    image.info["transparency"] = scaled if isinstance(key, tuple) else scaled[0]


def to_rgb(image: Image.Image, extent: tuple[int, int, int, int] | None = None) -> Image.Image:
    """A decoded image as RGB, composited on white; pixels outside ``extent`` are white."""
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgb = _on_white(image)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    if extent is not None and extent != (0, 0, *rgb.size):
        canvas = Image.new("RGB", rgb.size, "white")
        canvas.paste(rgb.crop(extent), extent)
        return canvas
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size)
    for top, bottom in strips(*image.size):
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        canvas.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return canvas
