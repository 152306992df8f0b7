"""The supported formats: their signatures and Pillow's plugin classes."""

from collections.abc import Callable
from typing import IO

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from moleflow.model.errors import UnsupportedImageError

__all__ = ["FORMATS", "READERS", "SUFFIXES", "SUFFIX_OF", "image_format", "webp_size"]

FORMATS = ("PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF")
"""Supported formats. Of an animated or multi-page file, the first frame is read."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Their file name suffixes in lower case, for finding images in a folder."""


SUFFIX_OF = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
"""The usual suffix of each format."""


class _WebP(WebPImagePlugin.WebPImageFile):
    """Frees the decoder's buffers (8 bytes per pixel) after the first frame, before Pillow allocates its own image."""

    def _get_next(self) -> tuple[bytes, int, int]:
        frame: tuple[bytes, int, int] = super()._get_next()
        self._decoder = None
        return frame


READERS: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": _WebP,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
"""Pillow's plugin classes by format."""


def image_format(data: bytes) -> str | None:
    """Which of ``FORMATS`` a file is, by its signature, or ``None``."""
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


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP from its first chunk (RFC 9649, sections 2.5 to 2.7), without decoding.

    Raises ``UnsupportedImageError`` if the header is damaged.
    """
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise UnsupportedImageError("The WebP's header is damaged or incomplete; save the image again as PNG or JPEG.")
