"""The image decoder that training and serving share, so that both see the same pixels.

The format is detected from the first bytes, never from the name, and Pillow's plugin class for it is used directly: no
other format reaches a parser. The pixel count in the header is checked against the caller's limit before anything is
decoded. No global Pillow setting is read or changed.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from moleflow.model.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.bit_depth import FULL_SCALE, DeepImage, check_samples, is_deep, stored_as
from moleflow.model.images.formats import FORMATS, READERS, SUFFIXES, image_format, webp_size
from moleflow.model.images.limits import check_structure
from moleflow.model.images.resizing import pixel_array, resize_rgb, resize_strips
from moleflow.model.images.rgb import check_mode, scale_colour_key, to_rgb

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "DecodedImage",
    "has_deep_values",
    "image_format",
    "limit_pixels",
    "open_for_model",
    "open_image",
    "open_rgb",
]

MAX_PIXELS = 40_000_000
"""Default limit of the pixel count. Decoding takes up to 13 bytes per pixel (WebP)."""

_process_limit = MAX_PIXELS


def limit_pixels(most: int) -> None:
    """Set this process's default limit of the pixel count; call before starting threads."""
    global _process_limit
    _process_limit = most


MAX_SIDE = 32_768
"""Longest side in pixels. Anomaly maps take memory per row and column as well as per pixel: an image one pixel high
with millions of columns would cost far more than its pixel count suggests."""

MIN_OVERSAMPLING = 4
"""A JPEG is decoded at reduced scale if both sides stay at least this many times the model's. After resizing, pixels
then differ by at most 1 of 255 from those of a full decoding; at 2 times, by up to 5."""

_REDUCTIONS = (8, 4, 2)
"""Scale denominators of the JPEG decoder, which drops high-frequency DCT coefficients."""

_ORIENTATION = 0x0112
"""EXIF and TIFF orientation tag (EXIF 2.32, section 4.6.4)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image of each orientation upright; 1 is upright already."""

_QUARTERS = frozenset(
    {Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90}
)
"""Those that swap width and height."""

# Pillow warns of damaged metadata (not used here) and of large sizes (checked here). Filters are set once, at import:
# changing them around each call is not thread-safe.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def open_rgb(source: bytes | Path, *, max_pixels: int | None = None, white_level: int = FULL_SCALE) -> np.ndarray:
    """Decode an image, given as bytes or path, to RGB: ``(height, width, 3)`` uint8, writable. Thread-safe.

    EXIF orientation is applied. Grey, bilevel, palette, CMYK and YCbCr are converted to RGB; 16-bit values are scaled
    from 0…``white_level`` to 0…255; transparency is composited on white. Colour profiles are not applied.

    Raises:
        UnsupportedImageError: the file is damaged or of an unsupported format.
        ImageTooLargeError: it has more than ``max_pixels`` pixels (checked before decoding).
        ImageError: the path cannot be read.
    """
    with _refusing_broken_files(source):
        opened = _Opened.read(source, max_pixels)
        if opened.is_deep:
            rgb = opened.load_deep().to_rgb(white_level)
            return pixel_array(_turned(rgb, _turn(opened.image)))
        return pixel_array(opened.load_rgb())


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image at the model's size, with the original width and height (upright).

    ``pixels`` are RGB, ``(side, side, 3)``: uint8, or uint16 in 0…65535 if the file has more than 8 bits.
    """

    pixels: np.ndarray
    width: int
    height: int


def open_for_model(source: bytes | Path, side: int, *, max_pixels: int | None = None) -> DecodedImage:
    """Decode an image and resize it to ``side`` × ``side``; conversions and errors as ``open_rgb``.

    Values of more than 8 bits are not scaled, as the white level depends on the product
    (``moleflow.model.images.value_range``). Large JPEGs are decoded at 1/2, 1/4 or 1/8 scale if both sides divide
    evenly, so that no pixel shifts, and stay at least ``MIN_OVERSAMPLING`` times ``side``; that saves four fifths of
    the time at 16 megapixels.
    """
    with _refusing_broken_files(source):
        opened = _Opened.read(source, max_pixels)
        width, height = opened.image.size
        if opened.is_deep:
            deep = opened.load_deep()
            turn = _turn(opened.image)
            width, height = deep.size[::-1] if turn in _QUARTERS else deep.size
            return DecodedImage(_deep_pixels(deep, turn, side), width, height)
        rgb = opened.load_rgb(side)
        if rgb.width * height != rgb.height * width:  # rotated by 90°
            width, height = height, width
        return DecodedImage(pixel_array(resize_rgb(rgb, side)), width, height)


def open_image(source: bytes | Path) -> Image.Image:
    """Decode an image, upright, without converting its values (palette indices stay). Errors as ``open_rgb``."""
    with _refusing_broken_files(source):
        image = _Opened.read(source).image
        image.load()
        turned = _turned(image, _turn(image))
        turned.format = image.format  # the one attribute that Pillow does not copy
        return turned


def has_deep_values(source: bytes | Path) -> bool:
    """Whether an image has more than 8 bits per value, by its header. Errors as ``open_rgb``."""
    with _refusing_broken_files(source):
        return _Opened.read(source).is_deep


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file of a supported format whose header is within the limits. No pixel is decoded yet."""

    image: ImageFile.ImageFile
    kind: str
    data: bytes
    name: str
    stored: str

    @classmethod
    def read(cls, source: bytes | Path, max_pixels: int | None = None) -> "_Opened":
        """Open ``source``; unsupported files are refused here."""
        data = source if isinstance(source, bytes) else _read(source)
        name, most = _called(source), _process_limit if max_pixels is None else max_pixels
        kind = image_format(data)
        if kind is None:
            found = "is empty" if not data else f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
            raise UnsupportedImageError(f"{name} {found}; save it as PNG or JPEG.")
        check_structure(data, kind)
        if kind == "WebP":
            _check_size(webp_size(data), most, name)  # its decoder allocates all pixels on construction
        image = READERS[kind](io.BytesIO(data))
        _check_size(image.size, most, name)
        check_samples(image, name)
        return cls(image, kind, data, name, stored_as(image))

    @property
    def is_deep(self) -> bool:
        return is_deep(self.stored)

    def load_deep(self) -> DeepImage:
        return DeepImage.load(self.image, lambda: READERS[self.kind](io.BytesIO(self.data)))

    def load_rgb(self, side: int | None = None) -> Image.Image:
        """Decode to upright 8-bit RGB; with ``side``, large JPEGs at reduced scale."""
        image = self.image
        check_mode(image, self.name)
        # A GIF's first frame may not cover the canvas.
        extent = image.tile[0].extents if self.kind == "GIF" and image.tile else None
        reduction = _reduction(*image.size, side) if self.kind == "JPEG" and side is not None else 1
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()
        if self.kind == "PNG":
            scale_colour_key(image, self.stored)
        turn, rgb = _turn(image), to_rgb(image, extent)
        if rgb is not image:
            image.close()  # frees its pixels before transposing allocates as many again
        return _turned(rgb, turn)


def _reduction(width: int, height: int, side: int) -> int:
    """The scale denominator of a JPEG for a model input of ``side``."""
    least = MIN_OVERSAMPLING * side
    return next((by for by in _REDUCTIONS if width % by == height % by == 0 and min(width, height) >= least * by), 1)


def _deep_pixels(deep: DeepImage, turn: Image.Transpose | None, side: int) -> np.ndarray:
    """An image of more than 8 bits at the model's size, upright: ``(side, side, 3)`` uint16."""
    channels = [_turned(channel, turn) for channel in resize_strips(deep.strips(), side)]
    values = np.stack([np.asarray(channel) for channel in channels], 2)
    return np.repeat(np.clip(np.rint(values), 0, FULL_SCALE).astype(np.uint16), 3 // len(channels), 2)


def _read(path: Path) -> bytes:
    """The file's bytes; ``ImageError`` with its path if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _called(source: bytes | Path) -> str:
    return "The image" if isinstance(source, bytes) else str(source)


@contextmanager
def _refusing_broken_files(source: bytes | Path) -> Iterator[None]:
    """Turn whatever Pillow raises on a broken file into an ``ImageError`` that says what to do."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLargeError(f"{_called(source)} is too large to decode ({error}); send a smaller one.") from error
    except Exception as error:
        # Broken files raise OSError, SyntaxError, ValueError, struct.error, zlib.error, TypeError, OverflowError and
        # others; Pillow documents no list.
        raise UnsupportedImageError(
            f"{_called(source)} cannot be decoded ({str(error) or type(error).__name__}); it is damaged, incomplete "
            "or an unsupported variant: save it again as PNG or JPEG."
        ) from error


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Raise ``ImageTooLargeError`` for more than ``max_pixels`` pixels, or a side beyond ``MAX_SIDE``."""
    width, height = size
    if max(size) > MAX_SIDE:
        raise ImageTooLargeError(
            f"{name} has {width} × {height} pixels; the longest side allowed is {MAX_SIDE:,}: split the image."
        )
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width} × {height} = {width * height:,} pixels; at most {max_pixels:,} are accepted: "
            "use a smaller image, or raise the limit with --max-pixels or MOLEFLOW_MAX_PIXELS."
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns a decoded image upright. Pillow applies a TIFF's own while decoding."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata can raise anything, but the pixels are fine
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)
