"""Estimating the white level of a product's 16-bit images from its good images, before training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moleflow.model.errors import ImageError
from moleflow.model.images.decode import has_deep_values
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import scale_values, white_level
from moleflow.training.data.checks import thread_map
from moleflow.training.data.datasets import read_image
from moleflow.training.errors import DatasetError

__all__ = ["Reader", "find_white_level", "is_16_bit"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads images of a product as its expert sees them, scaling 16-bit values by its white level."""

    white_level: int | None

    def __call__(self, path: Path, side: int) -> np.ndarray:
        """An RGB image at ``side`` × ``side``: uint8, or float32 in 0…255. ``DatasetError`` if it cannot be read."""
        return scale_values(read_image(path, side), self.white_level)


def is_16_bit(path: Path) -> bool:
    """Whether an image has more than 8 bits per value. ``DatasetError`` if it cannot be read."""
    try:
        return has_deep_values(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error


def find_white_level(
    name: str, paths: Sequence[Path], preprocessing: Preprocessing, log: Callable[[str], None]
) -> int | None:
    """The white level of product ``name``, from its good images at the model's size; ``None`` if all have 8 bits.

    ``log`` is called with the result as text.

    Raises:
        DatasetError: an image cannot be read.
    """
    deep = [path for path, is_deep in zip(paths, thread_map(is_16_bit, paths), strict=True) if is_deep]
    if not deep:
        return None
    peak = max(thread_map(lambda path: int(read_image(path, preprocessing.image_size).max()), deep))
    level = white_level(peak)
    log(f"{name}: {len(deep)} 16-bit images, largest value {peak}: white level {level}")
    return level
