"""Altered copies of held-out good images: what a threshold forgives.

An image of a good product must not alarm because it was saved as JPEG, lit a little differently, or placed a pixel
aside. Half of the scores that a product's threshold is calibrated with are therefore those of copies that were altered
in all three ways, at the image's own resolution. JPEG is what matters: light and shift of this size hardly change a
score (docs/results/verdicts.md). Nothing is fitted to the copies.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.training.data.datasets import read_image

__all__ = ["AlteredReader", "altered"]

LEAST_QUALITY, BEST_QUALITY = 60, 95
"""JPEG quality: from a camera's economy mode to what is called lossless to the eye."""

LIGHT = 0.05
"""Brightness varies by this fraction to both sides."""

SHIFT = 1
"""Pixels of the original by which a copy may be shifted, to each side and in both directions."""


def altered(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A copy of an RGB image ``(height, width, 3)`` uint8 with other light, shifted, and after JPEG compression.

    Rows and columns that the shift uncovers repeat their neighbours.
    """
    down, right = random.integers(-SHIFT, SHIFT + 1, 2)
    margin = ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    height, width = image.shape[:2]
    moved = np.pad(image, margin, "edge")[SHIFT - down :, SHIFT - right :][:height, :width]
    light = np.rint(moved * random.uniform(1 - LIGHT, 1 + LIGHT)).clip(0, 255).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(light).save(file, "JPEG", quality=int(random.integers(LEAST_QUALITY, BEST_QUALITY + 1)))
        return np.asarray(Image.open(file))


@dataclass(frozen=True, slots=True)
class AlteredReader:
    """Reads altered copies, at the size that ``resize`` gives; 16-bit values are scaled by ``white_level``.

    The random seed depends on ``copy`` and the file's name only.
    """

    white_level: int | None
    resize: Callable[[np.ndarray], np.ndarray]
    copy: int = 0

    def __call__(self, path: Path, side: int) -> np.ndarray:
        """An RGB image ``(side, side, 3)`` uint8. ``DatasetError`` if it cannot be read."""
        seed = hashlib.sha256(f"altered {self.copy}|{path.name}".encode()).digest()
        image = read_image(path, white_level=self.white_level or FULL_SCALE)
        return self.resize(altered(image, np.random.default_rng(list(seed))))
