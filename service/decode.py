"""From the bytes of an upload to the model's input: what the service demands beyond a readable picture."""

from dataclasses import dataclass

import numpy as np

from model.errors import ImageTooLargeError
from model.picture import open_for_model
from model.preprocessing import Preprocessing

__all__ = ["MAX_SIDE", "Decoded", "decode"]

MAX_SIDE = 32_768
"""Longest side accepted, in pixels. An anomaly map needs memory for each row and column apart from its pixels, so a
picture one pixel high with millions of columns would cost far more than its pixel count says."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The model's input, ``(S, S, 3)`` uint8 or uint16, and the size of the upright image that it came from."""

    model_input: np.ndarray
    width: int
    height: int


def decode(data: bytes, preprocessing: Preprocessing, *, max_pixels: int | None = None) -> Decoded:
    """Decode a picture and resize it for the model; the full-size pixels are let go.

    Raises ``UnsupportedImageError`` when the bytes are no picture that is read, ``ImageTooLargeError`` past the limits.
    """
    picture = open_for_model(data, preprocessing.image_size, max_pixels=max_pixels)
    width, height = picture.width, picture.height
    if max(height, width) > MAX_SIDE:
        raise ImageTooLargeError(
            f"The picture has {width} × {height} pixels; no side may be longer than {MAX_SIDE:,}: cut it into pieces."
        )
    return Decoded(picture.pixels, width, height)
