"""Ground-truth masks: which pixels of a test image show the defect.

Zero is background and everything else is marked, since data sets use 1, 255 or defect numbers. Exceptions:

- Palette images: index 0 is background if its colour is black (as in PASCAL VOC), else the index whose colour is black
  (as after a conversion with an adaptive palette). Without black, or with a single colour, the index itself counts.
- Masks with soft edges (resized or anti-aliased) are thresholded at half their maximum, JPEG masks at mid-grey.
- If the colour is constant and the alpha channel is not, alpha is the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.model.errors import ImageError
from moleflow.model.images.decode import open_image
from moleflow.training.errors import DatasetError

__all__ = ["Mask", "Trait", "decode_mask", "read_mask", "resized_mask"]

_JPEG_LEVEL = 127
"""Threshold of JPEG masks, whose 0 and 255 are blurred by compression."""

_MAX_LABELS = 16
"""With more levels than this besides zero, they are shades of a soft edge, not defect numbers."""

_MIN_SHADES = 3
"""With no more levels than this, zero included, they could be labels of thin defects rather than shades."""


class Trait(StrEnum):
    """How an ambiguous mask was interpreted; the value names the masks in a warning."""

    SOFT = "masks with soft edges"
    NO_BLACK = "palette masks without black"
    ALPHA = "masks with constant colour and varying alpha channel"


@dataclass(frozen=True, slots=True)
class Mask:
    """The marked pixels, ``(height, width)`` bool, upright, and how they were interpreted."""

    marked: np.ndarray
    traits: frozenset[Trait]


def read_mask(masks: Path | Sequence[Path], height: int | None = None, width: int | None = None) -> np.ndarray:
    """The union of the masks of one image, ``(height, width)`` bool, true on the defect.

    At the first mask's size by default; resizing is nearest-neighbour. ``DatasetError`` if a file cannot be read.
    """
    paths = [masks] if isinstance(masks, Path) else list(masks)
    first = decode_mask(paths[0]).marked
    size = height or first.shape[0], width or first.shape[1]
    union = resized_mask(first, *size)
    for path in paths[1:]:
        union = union | resized_mask(decode_mask(path).marked, *size)
    return union


def decode_mask(path: Path) -> Mask:
    """Decode one mask at its own size. ``DatasetError`` if the file cannot be read."""
    try:
        image = open_image(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    levels, traits = _levels(image)
    if image.format == "JPEG":
        return Mask(levels > _JPEG_LEVEL, traits)
    if image.mode not in ("1", "P", "PA") and _is_soft(levels):
        return Mask(levels > levels.max() / 2, traits | {Trait.SOFT})
    return Mask(levels > 0, traits)


def resized_mask(marked: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask ``(h, w)`` bool, resized to ``(height, width)`` by nearest neighbour."""
    if marked.shape == (height, width):
        return marked
    image = Image.fromarray(marked.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0


def _levels(image: Image.Image) -> tuple[np.ndarray, frozenset[Trait]]:
    """The mask as numbers ``(height, width)``, 0 for background."""
    if image.mode == "P" and "transparency" not in image.info:
        return _palette_levels(image)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        return _levels_with_alpha(np.asarray(image.convert("RGBA")))
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    values = np.asarray(image)
    return (values.max(axis=2) if values.ndim == 3 else values), frozenset()


def _palette_levels(image: Image.Image) -> tuple[np.ndarray, frozenset[Trait]]:
    """The brightness if the used colours include black; but the index if black is index 0, or there is no black."""
    indices = np.asarray(image)
    palette = np.zeros((256, 3), np.uint8)
    stored = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette[: len(stored)] = stored
    used = np.unique(indices)
    brightness = palette.max(axis=1)
    if (palette[used] == palette[used[0]]).all():
        return indices, frozenset()
    if not brightness[used].all():
        is_grey = (palette[used] == palette[used][:, :1]).all()
        by_index = not is_grey and used[0] == 0 and brightness[0] == 0
        return (indices if by_index else brightness[indices]), frozenset()
    return indices, frozenset({Trait.NO_BLACK})


def _levels_with_alpha(pixels: np.ndarray) -> tuple[np.ndarray, frozenset[Trait]]:
    """The brightness of visible pixels; the alpha channel if the colour is constant."""
    colours, alpha = pixels[..., :3].max(axis=2), pixels[..., 3]
    if (alpha == alpha.flat[0]).all():
        return colours, frozenset()
    if (pixels[..., :3] == pixels[0, 0, :3]).all():
        return alpha, frozenset({Trait.ALPHA})
    return np.where(alpha > 0, colours, 0), frozenset()


def _is_soft(levels: np.ndarray) -> bool:
    """Whether the levels are shades of soft edges: too many for defect numbers, or none of them fills an area."""
    shades = np.unique(levels)
    if shades[0] != 0 or len(shades) <= 2:
        return False
    if len(shades) > _MAX_LABELS + 1:
        return True
    inner = levels[1:-1, 1:-1]
    is_filled = (inner > 0) & (inner < shades[-1])
    for neighbour in (levels[:-2, 1:-1], levels[2:, 1:-1], levels[1:-1, :-2], levels[1:-1, 2:]):
        is_filled &= inner == neighbour
    return len(shades) > _MIN_SHADES and not is_filled.any()
