"""How a picture becomes the backbone's input: one resolved record, stored in the checkpoint.

Training and serving call the same functions with the same record, so they cannot differ. Whoever only decodes images
imports this module, so it does without torch.
"""

from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Preprocessing"]

_Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
_Deviation = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Of values in 0…1, known networks have means in 0…1 and deviations of 0.2 to 1; a value of 0 would divide by it."""


class Preprocessing(BaseModel):
    """Resize to ``image_size`` × ``image_size`` (whole picture, no crop), then ``(x / 255 - mean) / std``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int = Field(ge=32, le=4096, description="side of the square input, in pixels")
    interpolation: Literal["bilinear"] = "bilinear"
    mean: tuple[_Mean, _Mean, _Mean] = Field(description="per channel (RGB), of values in 0…1")
    std: tuple[_Deviation, _Deviation, _Deviation] = Field(description="per channel (RGB), of values in 0…1")

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize one RGB picture, ``(height, width, 3)`` uint8, to ``(image_size, image_size, 3)`` uint8.

        Bilinear with anti-aliasing (Pillow's filter, whose support grows with the reduction). A picture that
        has the wanted size already is returned as it is. CPU only, releases the interpreter lock.
        """
        check_image(image)
        size = self.image_size
        if image.shape[:2] == (size, size):
            return image
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def scale_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        """Normalisation of 0…255 values as one multiply-add: ``x·scale + offset``; each ``(3,)`` float32."""
        scale = np.array([1 / (255 * s) for s in self.std], np.float32)
        offset = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32)
        return scale, offset


def check_image(image: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``image`` is an RGB picture: ``(height, width, 3)``, uint8, not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image must be (height, width, 3) uint8 and not empty; got shape {image.shape}, dtype {image.dtype}"
        )
