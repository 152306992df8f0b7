"""The heat map laid over the picture, as a file."""

import io

import numpy as np
from PIL import Image

from model.overlay import overlay
from model.results import Prediction

__all__ = ["overlay_png"]

_COMPRESSION_LEVEL = 1
"""zlib level of the PNG; on a photograph of 900 × 900 pixels 59 ms and 645 kB, against 214 ms and 523 kB at 6."""


def overlay_png(picture: np.ndarray, prediction: Prediction) -> bytes:
    """``model.overlay.overlay`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(overlay(picture, prediction)).save(buffer, "PNG", compress_level=_COMPRESSION_LEVEL)
    return buffer.getvalue()
