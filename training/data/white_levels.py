"""What is white in a product's 16-bit images, found in its good images before anything is learned from them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moleflow.model.errors import DatasetError, ImageError
from moleflow.model.images.decode import has_deep_values
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import scale_values, white_level
from moleflow.model.runtime.threads import helper_threads
from moleflow.training.data.datasets import read_image

__all__ = ["Reader", "find_white_level", "is_16_bit"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads images of a product as its expert sees them: 16-bit values by the product's white level."""

    white_level: int | None

    def __call__(self, path: Path, side: int) -> np.ndarray:
        """An RGB image: uint8, or float32 over 0…255 at ``side`` × ``side``. ``DatasetError`` if it cannot be read."""
        return scale_values(read_image(path, side), self.white_level)


def is_16_bit(path: Path) -> bool:
    """Whether an image holds more than 8 bits a value. ``DatasetError`` if it cannot be read."""
    try:
        return has_deep_values(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error


def find_white_level(
    name: str, paths: Sequence[Path], preprocessing: Preprocessing, tell: Callable[[str], None]
) -> int | None:
    """The white level of product ``name`` by its good images at ``paths``, as the model sees them; ``None`` at 8 bits.

    ``tell`` is told of it.

    Raises:
        DatasetError: an image cannot be read.
    """
    with ThreadPoolExecutor(helper_threads()) as pool:
        deep = [path for path, is_deep in zip(paths, pool.map(is_16_bit, paths), strict=True) if is_deep]
        if not deep:
            return None
        peak = max(pool.map(lambda path: int(read_image(path, preprocessing.image_size).max()), deep))
    level = white_level(peak)
    tell(f"{name}: {len(deep)} 16-bit images, largest value {peak}: {level} is taken for white")
    return level
