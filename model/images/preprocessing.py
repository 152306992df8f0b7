"""Resizing and normalisation of the backbone's input, as a record stored in the checkpoint.

Training and serving use the same record. No torch here: processes that only decode images import this module.
"""

from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from moleflow.model.images.resizing import resize_rgb, resize_strips, strips

__all__ = ["Preprocessing"]

_Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
_Deviation = Annotated[float, Field(ge=1e-3, le=1e3)]
"""For inputs in 0…1, known networks use means in 0…1 and standard deviations of 0.2 to 1; 0 would divide by zero."""


class Preprocessing(BaseModel):
    """Resize to ``image_size`` × ``image_size`` (no crop, aspect ratio not kept), then ``(x / 255 - mean) / std``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int = Field(ge=32, le=4096, description="side of the square input, in pixels")
    interpolation: Literal["bilinear"] = "bilinear"
    mean: tuple[_Mean, _Mean, _Mean] = Field(description="per channel (RGB), of values in 0…1")
    std: tuple[_Deviation, _Deviation, _Deviation] = Field(description="per channel (RGB), of values in 0…1")

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize one RGB image, ``(height, width, 3)`` uint8 or uint16, to ``(image_size, image_size, 3)``, same type.

        Bilinear with anti-aliasing (``moleflow.model.images.resizing``). An image of the right size is returned
        unchanged, not copied. Releases the GIL.
        """
        check_image(image)
        size = self.image_size
        if image.shape[:2] == (size, size):
            return image
        if image.dtype == np.uint8:
            return np.asarray(resize_rgb(Image.fromarray(image), size))
        channels = resize_strips((image[top:bottom] for top, bottom in strips(image.shape[1], image.shape[0])), size)
        return np.rint(np.stack([np.asarray(channel) for channel in channels], 2)).astype(np.uint16)

    def scale_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        """Normalisation of values in 0…255 as one multiply-add, ``x·scale + offset``; each ``(3,)`` float32."""
        scale = np.array([1 / (255 * s) for s in self.std], np.float32)
        offset = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32)
        return scale, offset


def check_image(image: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``image`` is RGB: ``(height, width, 3)``, uint8 or uint16, not empty."""
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            "image must be (height, width, 3) uint8 or uint16 and not empty; "
            f"got shape {image.shape}, dtype {image.dtype}"
        )
