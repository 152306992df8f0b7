"""Masks: which pixels of a test image show the defect, in whatever way the file says so.

Black is unmarked, everything else marked, since data sets write 1, 255 or the number of a defect. Where that would be
wrong, the file itself tells:

- A palette's index says nothing of black. Index 0 is unmarked where its colour is black (as in PASCAL VOC), else
  whatever index has the colour black (as after a conversion that chose its own colours). With no black among the
  colours, or one colour alone, only the index is left to go by.
- Masks with soft edges (resized, or drawn with smoothing), and those stored as JPEG, are cut in the middle.
- Where all colours are the same and the alpha channel is not, the mask is in the alpha channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.model.errors import DatasetError, ImageError
from moleflow.model.images.decode import open_image

__all__ = ["Mask", "Trait", "decode_mask", "read_mask", "resized_mask"]

_JPEG_LEVEL = 127
"""In a JPEG mask 0 and 255 are blurred by the compression; a pixel is marked above the middle."""

_MOST_LABELS = 16
"""More levels than this beside black are no numbers of defects but shades of a soft edge."""


_FEWEST_SHADES = 3
"""Black, the marked level and one or two between: what is no more could be two defects as thin as a line."""


class Trait(StrEnum):
    """What a mask had to be read by, where that is not plain."""

    SOFT = "masks with soft edges"
    NO_BLACK = "palette masks without black"
    ALPHA = "masks whose colours say nothing and whose alpha channel varies"


@dataclass(frozen=True, slots=True)
class Mask:
    """The marked pixels, ``(height, width)`` bool, upright, and what they were told by."""

    marked: np.ndarray
    traits: frozenset[Trait]


def read_mask(masks: Path | Sequence[Path], height: int | None = None, width: int | None = None) -> np.ndarray:
    """Decode the mask or masks of one image to ``(height, width)`` bool, true on the defect.

    Of several, a pixel is marked that any of them marks. At the first one's size unless told otherwise; resizing takes
    the nearest pixel. ``DatasetError`` when a file cannot be read.
    """
    paths = [masks] if isinstance(masks, Path) else list(masks)
    first = decode_mask(paths[0]).marked
    size = height or first.shape[0], width or first.shape[1]
    union = resized_mask(first, *size)
    for path in paths[1:]:
        union = union | resized_mask(decode_mask(path).marked, *size)
    return union


def decode_mask(path: Path) -> Mask:
    """Decode one mask at its own size. ``DatasetError`` when the file cannot be read."""
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
    """A mask, ``(h, w)`` bool, brought to ``(height, width)`` by the nearest pixel."""
    if marked.shape == (height, width):
        return marked
    image = Image.fromarray(marked.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0


def _levels(image: Image.Image) -> tuple[np.ndarray, frozenset[Trait]]:
    """The mask as numbers ``(height, width)``, 0 where it is unmarked."""
    plain: frozenset[Trait] = frozenset()
    if image.mode == "P" and "transparency" not in image.info:
        return _palette_levels(image)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        # The palette of a mask with transparent parts is read by its colours.
        return _levels_with_alpha(np.asarray(image.convert("RGBA")))
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    values = np.asarray(image)
    return (values.max(axis=2) if values.ndim == 3 else values), plain


def _palette_levels(image: Image.Image) -> tuple[np.ndarray, frozenset[Trait]]:
    """Brightness where the palette is grey and holds black, else the index or whether the colour is not black."""
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
    """The colours' brightness where they are visible; of one colour alone, the alpha channel instead."""
    colours, alpha = pixels[..., :3].max(axis=2), pixels[..., 3]
    if (alpha == alpha.flat[0]).all():
        return colours, frozenset()
    if (pixels[..., :3] == pixels[0, 0, :3]).all():
        return alpha, frozenset({Trait.ALPHA})
    return np.where(alpha > 0, colours, 0), frozenset()


def _is_soft(levels: np.ndarray) -> bool:
    """Whether the levels are shades of edges: more than defects could have numbers, or none that fills an area."""
    shades = np.unique(levels)
    if shades[0] != 0 or len(shades) <= 2:
        return False
    if len(shades) > _MOST_LABELS + 1:
        return True
    inner = levels[1:-1, 1:-1]
    is_filled = (inner > 0) & (inner < shades[-1])
    for neighbour in (levels[:-2, 1:-1], levels[2:, 1:-1], levels[1:-1, :-2], levels[1:-1, 2:]):
        is_filled &= inner == neighbour
    return len(shades) > _FEWEST_SHADES and not is_filled.any()
