"""Reading image files: the one decoder that training and serving share, so that they cannot see different pixels.

The format is told from the first bytes, never from a name, and Pillow's class for that format is used directly. So a
format outside the list never reaches a parser, and the pixel count in the header is checked before any pixel is
decoded, against the caller's limit rather than Pillow's own global one. No global Pillow setting is read or changed.
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
    "FORMATS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_OVERSAMPLING",
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
"""Largest image that is read unless ``limit_pixels`` or the caller says otherwise. Decoding takes up to 13 bytes a
pixel (of a WebP)."""

_process_limit = MAX_PIXELS


def limit_pixels(most: int) -> None:
    """Set the largest image, in pixels, that this process reads where a call names no limit; before other threads."""
    global _process_limit
    _process_limit = most


MAX_SIDE = 32_768
"""Longest side that is read, in pixels. An anomaly map needs memory for each row and column apart from its pixels:
an image one pixel high with millions of columns would cost far more than its pixel count says."""

MIN_OVERSAMPLING = 4
"""A JPEG is decoded at a reduced scale where both sides keep this many times the model's. Once resized, the pixels are
then those of full decoding, give or take one level of 255; at 2 times, up to 5 levels are between them."""

_REDUCTIONS = (8, 4, 2)
"""By how much a JPEG can be reduced while it is decoded: coefficients of high frequency are left out of each block."""

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
"""What brings an image of each orientation upright; 1 is upright already."""

_QUARTERS = frozenset(
    {Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90}
)
"""Those that make rows of columns."""

# Pillow warns of damaged metadata (which is not used here) and of sizes (which are checked here). Filters are set
# once, at import: changing them around each call would not be safe with several decoding threads.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def open_rgb(source: bytes | Path, *, max_pixels: int | None = None, white_level: int = FULL_SCALE) -> np.ndarray:
    """Decode an image, given as its file's bytes or path, to RGB: ``(height, width, 3)`` uint8, writable.

    Turned upright by its EXIF orientation. Grey, black-and-white, palette, CMYK and YCbCr images become RGB;
    16-bit values are scaled from 0…``white_level`` to 0…255; transparent parts are laid on white. Colour profiles are
    not applied. Raises ``UnsupportedImageError`` when the bytes are damaged or of a kind that is not read,
    ``ImageTooLargeError`` when there are more than ``max_pixels`` pixels (found before decoding), and ``ImageError``
    when a path cannot be read. Safe to call from many threads.
    """
    with _refusing_broken_files(source):
        opened = _Opened.read(source, max_pixels)
        if opened.is_deep:
            rgb = opened.load_deep().to_rgb(white_level)
            return pixel_array(_turned(rgb, _turn(opened.image)))
        return pixel_array(opened.load_rgb())


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image at the model's size, and the width and height of the upright image that it was made from.

    ``pixels`` are RGB, ``(side, side, 3)``: uint8, or uint16 over 0…65535 where the file holds more than 8 bits.
    """

    pixels: np.ndarray
    width: int
    height: int


def open_for_model(source: bytes | Path, side: int, *, max_pixels: int | None = None) -> DecodedImage:
    """Decode an image and resize it to ``side`` × ``side``; conversions and errors are those of ``open_rgb``.

    Values of more than 8 bits stay so: which part of their range a product uses is not known here
    (``moleflow.model.images.value_range``). Large JPEGs are decoded at reduced scale: by 2, 4 or 8 as long as both
    sides are divided evenly, so that no pixel moves, and keep ``MIN_OVERSAMPLING`` times
    ``side``. That saves four fifths of the time of a JPEG of 16 megapixels.
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
        if rgb.width * height != rgb.height * width:  # it was turned by a quarter
            width, height = height, width
        return DecodedImage(pixel_array(resize_rgb(rgb, side)), width, height)


def open_image(source: bytes | Path, *, max_pixels: int | None = None) -> Image.Image:
    """Decode an image, upright, with its values as stored (palette indices stay indices). Errors as ``open_rgb``."""
    with _refusing_broken_files(source):
        image = _Opened.read(source, max_pixels).image
        image.load()
        turned = _turned(image, _turn(image))
        turned.format = image.format  # Pillow carries the rest over
        return turned


def has_deep_values(source: bytes | Path, *, max_pixels: int | None = None) -> bool:
    """Whether an image holds more than 8 bits a value, told by its header. Errors as ``open_rgb``."""
    with _refusing_broken_files(source):
        return _Opened.read(source, max_pixels).is_deep


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file of a known format whose header was read and found within the limits. No pixel is decoded yet."""

    image: ImageFile.ImageFile
    kind: str
    data: bytes
    name: str
    stored: str

    @classmethod
    def read(cls, source: bytes | Path, max_pixels: int | None) -> "_Opened":
        """Open ``source``; what is not read is refused here."""
        data = source if isinstance(source, bytes) else _read(source)
        name, most = _called(source), _process_limit if max_pixels is None else max_pixels
        kind = image_format(data)
        if kind is None:
            found = "is empty" if not data else f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
            raise UnsupportedImageError(f"{name} {found}; save it as PNG or JPEG.")
        check_structure(data, kind)
        if kind == "WebP":
            _check_size(webp_size(data), most, name)  # its decoder takes memory for all pixels when it is made
        image = READERS[kind](io.BytesIO(data))
        _check_size(image.size, most, name)
        check_samples(image, name)
        return cls(image, kind, data, name, stored_as(image))

    @property
    def is_deep(self) -> bool:
        """Whether the file holds more than 8 bits a value."""
        return is_deep(self.stored)

    def load_deep(self) -> DeepImage:
        """Decode all bits."""
        return DeepImage.load(self.image, lambda: READERS[self.kind](io.BytesIO(self.data)))

    def load_rgb(self, side: int | None = None) -> Image.Image:
        """Decode to upright 8-bit RGB; for a model of ``side``, a large JPEG at reduced scale."""
        image = self.image
        check_mode(image, self.name)
        # The first frame of a GIF need not cover the canvas.
        extent = image.tile[0].extents if self.kind == "GIF" and image.tile else None
        reduction = _reduction(*image.size, side) if self.kind == "JPEG" and side is not None else 1
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()
        if self.kind == "PNG":
            scale_colour_key(image, self.stored)
        turn, rgb = _turn(image), to_rgb(image, extent)
        if rgb is not image:
            image.close()  # gives its pixels back before a turn takes as many again
        return _turned(rgb, turn)


def _reduction(width: int, height: int, side: int) -> int:
    """By how much a JPEG is reduced for a model of ``side``; 1 where it is not."""
    least = MIN_OVERSAMPLING * side
    return next((by for by in _REDUCTIONS if width % by == height % by == 0 and min(width, height) >= least * by), 1)


def _deep_pixels(deep: DeepImage, turn: Image.Transpose | None, side: int) -> np.ndarray:
    """A deep image at the model's size and turned: ``(side, side, 3)`` uint16."""
    channels = [_turned(channel, turn) for channel in resize_strips(deep.strips(), side)]
    values = np.stack([np.asarray(channel) for channel in channels], 2)
    return np.repeat(np.clip(np.rint(values), 0, FULL_SCALE).astype(np.uint16), 3 // len(channels), 2)


def _read(path: Path) -> bytes:
    """The file's bytes; ``ImageError`` names the path when there are none to be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _called(source: bytes | Path) -> str:
    """How error messages call the image."""
    return "The image" if isinstance(source, bytes) else str(source)


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


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Raise ``ImageTooLargeError`` when a header announces more than ``max_pixels``, or a side beyond ``MAX_SIDE``."""
    width, height = size
    if max(size) > MAX_SIDE:
        raise ImageTooLargeError(
            f"{name} has {width} × {height} pixels; no side may be longer than {MAX_SIDE:,}: cut it into pieces."
        )
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width} × {height} = {width * height:,} pixels; at most {max_pixels:,} are accepted: "
            "send a smaller one, or raise the limit with --max-pixels or MOLEFLOW_MAX_PIXELS."
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a decoded image upright. A TIFF is upright already: Pillow applies its tag while decoding."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata raises as many kinds as damaged pixels do, but the pixels are fine
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)
