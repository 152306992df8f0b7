"""From the bytes of an upload to the model's input."""

from dataclasses import dataclass

import numpy as np

from model.picture import open_for_model
from model.preprocessing import Preprocessing

__all__ = ["Decoded", "decode"]


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
    return Decoded(picture.pixels, picture.width, picture.height)
