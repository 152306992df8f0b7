"""Sample images."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def sample_image(width: int = 90, height: int = 60, *, spot: bool = False) -> np.ndarray:
    """A greenish RGB image with a gradient; with a bright spot, the dummy detector finds it anomalous."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 1] = np.linspace(60, 120, width).astype(np.uint8)
    if spot:
        rgb[height // 4 : height // 2, width // 4 : width // 2] = 255
    return rgb


def gradient(height: int = 5, width: int = 7) -> np.ndarray:
    """An RGB image in which all pixels differ."""
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file of this kind."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_declared_size(width: int, height: int) -> bytes:
    """A tiny PNG whose header declares a size, but which has no pixel data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
