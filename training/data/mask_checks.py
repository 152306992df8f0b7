"""A look into test images and their masks before they are measured on: each mask must fit the image that it marks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.model.errors import DatasetError
from moleflow.training.data.checks import Checked, Look, in_threads, look_at, repeats, warn_of_leaks, warn_of_looks
from moleflow.training.data.masks import Trait, decode_mask, resized_mask
from moleflow.training.data.samples import Sample
from moleflow.training.data.warnings import WarningList

__all__ = ["check_testing"]

_SHAPE_TOLERANCE = 0.02
"""A mask's width may differ by this share, or by one pixel, from that of its image at the mask's height: rounding."""

_ORIENTATION = 0x0112
"""EXIF and TIFF tag of the camera's orientation (EXIF 2.32, section 4.6.4); 1 is upright."""

_QUARTERS = frozenset({5, 6, 7, 8})
"""Those that make rows of columns."""

_TRAIT_MEANINGS = {
    Trait.SOFT: "They are cut in the middle between black and their brightest level; store 0 and 255 alone.",
    Trait.NO_BLACK: "Index 0 is taken for unmarked, whatever its colour; give what is unmarked the colour black.",
    Trait.ALPHA: "What is opaque is taken for marked; store the mask as grey, black where it is unmarked.",
}


@dataclass(frozen=True, slots=True)
class _Marking:
    """The masks of one image together: which share they mark, what they were read by, whether they are turned alike."""

    share: float
    traits: frozenset[Trait]
    is_turned_otherwise: bool


def check_testing(
    name: str, root: Path, test: Sequence[Sample], train: Sequence[Path], good_masks: Sequence[Path]
) -> Checked:
    """Look into all test images and masks of a product, and for their like among its training images.

    Training images that cannot be read are passed over: they take no part in testing.
    """
    warnings = WarningList(root, name)
    looks, problems = look_at([sample.path for sample in test])
    learned = look_at(train)[0]
    warn_of_looks(looks, "testing", warnings, learned)
    _warn_of_contradictions(looks, test, warnings)
    warn_of_leaks(learned, looks, "testing", warnings)
    marked = [sample for sample in test if sample.masks and sample.path in looks]
    markings = in_threads(lambda sample: _marking(sample, looks[sample.path]), marked)
    _warn_of_markings({s.path: m for s, m in zip(marked, markings, strict=True) if isinstance(m, _Marking)}, warnings)
    empty = in_threads(_is_empty, good_masks)
    warnings.add(
        "testing",
        "masks of good images that mark something",
        [path for path, each in zip(good_masks, empty, strict=True) if each is False],
        "They are not used; move the image to its defect, or remove the mask.",
    )
    problems += tuple(each for each in (*markings, *empty) if isinstance(each, str))
    files = len(test) + sum(len(sample.masks) for sample in test) + len(good_masks)
    return Checked(problems, files, tuple(warnings.found))


def _marking(sample: Sample, image: Look) -> _Marking | str:
    """What the masks of an image mark, or why one of them cannot be used."""
    union: np.ndarray | None = None
    traits: frozenset[Trait] = frozenset()
    turned = False
    for path in sample.masks:
        try:
            mask = decode_mask(path)
        except DatasetError as error:
            return str(error)
        orientations = _orientation(path), _orientation(sample.path)
        differs = orientations[0] != orientations[1]
        misfit = _misfit(path, mask.marked.shape, sample.path, image, differs)
        if misfit is not None:
            return misfit
        if differs and (orientations[0] in _QUARTERS) != (orientations[1] in _QUARTERS):
            # Lying across, it would not have fitted, unless the image is a square.
            height, width = mask.marked.shape
            differs = _has_proportions(height, width, image.width, image.height)
        union = mask.marked if union is None else union | resized_mask(mask.marked, *union.shape)
        traits, turned = traits | mask.traits, turned or differs
    return _Marking(0.0 if union is None else float(union.mean()), traits, turned)


def _misfit(mask: Path, shape: tuple[int, ...], rgb_image: Path, image: Look, is_turned_otherwise: bool) -> str | None:
    """Why a mask cannot lie on its image, or ``None`` when it can; ``shape`` is the mask's, upright."""
    height, width = shape
    if _has_proportions(width, height, image.width, image.height):
        return None
    sizes = f"{width} × {height} pixels, but {rgb_image} has {image.width} × {image.height}"
    if is_turned_otherwise and _has_proportions(height, width, image.width, image.height):
        return (
            f"{mask} has {sizes}: one of them is turned by its EXIF orientation and the other is not, so that the mask "
            "would lie across; store both upright."
        )
    return f"{mask} has {sizes}: other proportions; draw the mask on this very image."


def _has_proportions(width: int, height: int, of_width: int, of_height: int) -> bool:
    expected = height * of_width / of_height
    return abs(width - expected) <= max(1.0, _SHAPE_TOLERANCE * width)


def _orientation(path: Path) -> int:
    """The camera's orientation that a file states; upright where it states none that can be read."""
    try:
        with Image.open(path) as image:
            stated = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata raises many kinds of errors, and then nothing is turned
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def _is_empty(mask: Path) -> bool | str:
    """Whether a mask marks nothing, or why it cannot be read."""
    try:
        return not decode_mask(mask).marked.any()
    except DatasetError as error:
        return str(error)


def _warn_of_markings(markings: dict[Path, _Marking], warnings: WarningList) -> None:
    """Warn of masks that say nothing, or were read in a way that may not be meant. Told by their images."""

    def add(kind: str, chosen: dict[Path, bool], meaning: str) -> None:
        warnings.add("testing", kind, [path for path, each in chosen.items() if each], meaning)

    add(
        "defective images whose mask marks nothing",
        {path: each.share == 0 for path, each in markings.items()},
        "All their pixels count as good; mark the defect, or remove the mask.",
    )
    add(
        "defective images whose mask marks every pixel",
        {path: each.share == 1 for path, each in markings.items()},
        "No pixel of them counts as good; mark the defect alone.",
    )
    add(
        "defective images whose mask marks more than half of them",
        {path: 0.5 < each.share < 1 for path, each in markings.items()},
        "Black must be what is good: if the masks are inverted, turn them over.",
    )
    add(
        "masks that are turned by another EXIF orientation than their images",
        {path: each.is_turned_otherwise for path, each in markings.items()},
        "They are laid on the upright image as they are; store both upright.",
    )
    for trait, meaning in _TRAIT_MEANINGS.items():
        add(trait, {path: trait in each.traits for path, each in markings.items()}, meaning)


def _warn_of_contradictions(looks: dict[Path, Look], test: Sequence[Sample], warnings: WarningList) -> None:
    """Warn of test images that are there several times, and of those among them that are good and defective at once."""
    defective = {sample.path: sample.is_anomalous for sample in test}
    groups = repeats(looks)
    both = [group for group in groups if len({defective[path] for path in group}) > 1]
    warnings.add(
        "testing",
        "test images that are labelled both good and defective",
        [group[0] for group in both],
        "One label is wrong; keep the right one.",
    )
    warnings.add(
        "testing",
        "test images that repeat another one",
        [path for group in groups for path in group[1:]],
        "They weigh double; remove them.",
    )
