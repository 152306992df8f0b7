"""The heat map overlaid on the image, as a PNG file."""

import io

import numpy as np
from PIL import Image

from moleflow.model.verdict.heatmap import overlay
from moleflow.model.verdict.results import Prediction

__all__ = ["overlay_png"]

_COMPRESSION_LEVEL = 1
"""zlib level of the PNG; on a photograph of 900 × 900 pixels 59 ms and 645 kB, against 214 ms and 523 kB at 6."""


def overlay_png(image: np.ndarray, prediction: Prediction) -> bytes:
    """``moleflow.model.verdict.heatmap.overlay`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(overlay(image, prediction)).save(buffer, "PNG", compress_level=_COMPRESSION_LEVEL)
    return buffer.getvalue()
