"""Reading picture files: the one decoder that training and serving share, so that they cannot see different pixels.

The format is told from the first bytes, never from a name, and Pillow's class for that format is used directly. So a
format outside the list never reaches a parser, and the pixel count in the header is checked before any pixel is
decoded, against the caller's limit rather than Pillow's own global one. No global Pillow setting is read or changed.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from model.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from model.picture_limits import check_structure

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "REDUCED_REACH",
    "SUFFIXES",
    "Picture",
    "open_for_model",
    "open_image",
    "open_rgb",
    "picture_format",
]

FORMATS = ("PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF")
"""What is read. Of an animated or multi-page file, the first frame."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Names that such files end with, in lower case; for finding pictures in a folder."""

MAX_PIXELS = 100_000_000
"""Largest picture read unless the caller says otherwise: 10,000 × 10,000, which decodes to 300 MB of RGB."""

REDUCED_REACH = 4
"""A JPEG is decoded at a reduced scale where both sides keep this many times the model's. Once resized, the pixels are
then those of full decoding, give or take one level of 255; at 2 times, up to 5 levels are between them."""

_REDUCTIONS = (8, 4, 2)
"""By how much a JPEG can be reduced while it is decoded: coefficients of high frequency are left out of each block."""

_READERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}

_ORIENTATION = 0x0112
"""EXIF and TIFF tag of the camera's orientation (EXIF 2.32, section 4.6.4)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of each orientation upright; 1 is upright already."""

_BITS_PER_SAMPLE = 258
"""TIFF tag of the bits in each value (TIFF 6.0, section 8)."""

_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
# Left out are modes without a known range (32-bit integers, floats) and CIELAB, which needs a colour engine.

# Pillow warns of damaged metadata (which is not used here) and of sizes (which are checked here). Filters are set
# once, at import: changing them around each call would not be safe with several decoding threads.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def open_rgb(source: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a picture, given as its file's bytes or path, to RGB: ``(height, width, 3)`` uint8, writable.

    Turned upright by its EXIF orientation. Grey, black-and-white, palette, CMYK and YCbCr pictures become RGB;
    16-bit values are scaled from 0…65535 to 0…255; transparent parts are laid on white. Colour profiles are not
    applied. Raises ``UnsupportedImageError`` when the bytes are damaged or of a kind that is not read,
    ``ImageTooLargeError`` when there are more than ``max_pixels`` pixels (found before decoding), and ``ImageError``
    when a path cannot be read. Safe to call from many threads.
    """
    return _rgb(open_image(source, max_pixels=max_pixels), source)


@dataclass(frozen=True, slots=True)
class Picture:
    """RGB pixels, ``(h, w, 3)`` uint8, and the size of the upright picture, which is larger where it was reduced."""

    pixels: np.ndarray
    width: int
    height: int


def open_for_model(source: bytes | Path, side: int, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture that will be resized to ``side`` × ``side``: as ``open_rgb``, but large JPEGs at reduced scale.

    They are reduced by 2, 4 or 8 as long as both sides are divided evenly, so that no pixel moves, and keep
    ``REDUCED_REACH`` times ``side``. That saves four fifths of the time of a JPEG of 16 megapixels.
    """
    image, size = _open(source, max_pixels, side)
    return Picture(_rgb(image, source), *size)


def open_image(source: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture, upright, with its values as stored (palette indices stay indices). Errors as ``open_rgb``."""
    return _open(source, max_pixels)[0]


def _open(source: bytes | Path, max_pixels: int, side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded picture, upright, and its width and height before any reduction for a model of ``side``."""
    data = source if isinstance(source, bytes) else _read(source)
    kind = picture_format(data)
    if kind is None:
        found = "is empty" if not data else f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        raise UnsupportedImageError(f"{_called(source)} {found}; save it as PNG or JPEG.")
    with _refusing_broken_files(source):
        check_structure(data, kind)
        image = _READERS[kind](io.BytesIO(data))
        _check_size(image, max_pixels, _called(source))
        width, height = image.size
        reduction = _reduction(width, height, side) if side is not None and kind == "JPEG" else 1
        if reduction > 1:
            image.draft(None, (width // reduction, height // reduction))
        image.load()
        upright = _upright(image)
        # A turn by a quarter swaps the sides; of a square, both are the same.
        return upright, (width, height) if upright.size == image.size else (height, width)


def _reduction(width: int, height: int, side: int) -> int:
    """By how much a JPEG is reduced for a model of ``side``; 1 where it is not."""
    least = REDUCED_REACH * side
    return next((by for by in _REDUCTIONS if width % by == height % by == 0 and min(width, height) >= least * by), 1)


def _rgb(image: Image.Image, source: bytes | Path) -> np.ndarray:
    """A decoded picture's pixels as ``open_rgb`` gives them."""
    with _refusing_broken_files(source):
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            image = _grey_from_16_bit(image)
        elif image.mode not in _ALPHA_MODES | _PLAIN_MODES:
            raise UnsupportedImageError(
                f"{_called(source)} holds values of mode {image.mode} (such as floating-point), which are not read; "
                "save it as 8-bit or 16-bit grey or RGB."
            )
        elif image.mode in _ALPHA_MODES or "transparency" in image.info:
            image = _on_white(image)
        return np.array(image.convert("RGB"))


def picture_format(data: bytes) -> str | None:
    """Which of ``FORMATS`` the first bytes of a file announce, or ``None``."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return None


def _read(path: Path) -> bytes:
    """The file's bytes; ``ImageError`` names the path when there are none to be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _called(source: bytes | Path) -> str:
    """How error messages call the picture."""
    return "The picture" if isinstance(source, bytes) else str(source)


@contextmanager
def _refusing_broken_files(source: bytes | Path) -> Iterator[None]:
    """Whatever Pillow raises on a broken file becomes one ``ImageError`` that says what to do."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLargeError(f"{_called(source)} is too large to decode ({error}); send a smaller one.") from error
    except Exception as error:
        # Pillow documents no list: broken files raise OSError, SyntaxError, ValueError, struct.error, zlib.error,
        # TypeError, OverflowError and others. Whatever it was, the file is what is wrong.
        raise UnsupportedImageError(
            f"{_called(source)} cannot be decoded ({str(error) or type(error).__name__}); it is damaged, incomplete "
            "or of a variant that is not read: save it again as PNG or JPEG."
        ) from error


def _check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    """Raise ``ImageTooLargeError`` when the header announces more than ``max_pixels``."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width} × {height} = {width * height:,} pixels; at most {max_pixels:,} are accepted: "
            "send a smaller one."
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the camera's orientation. A TIFF is upright already: Pillow applies its tag while decoding."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata raises as many kinds as damaged pixels do, but the pixels are fine
        orientation = 1
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format  # Pillow carries the rest over
    return turned


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a picture with transparent parts on white."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _grey_from_16_bit(image: Image.Image) -> Image.Image:
    """Scale the file's full range to 0…255, rounded: 0…65535, or 0…4095 for a 12-bit TIFF."""
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
    full = (1 << bits) - 1
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    return Image.fromarray(grey)
