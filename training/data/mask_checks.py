"""Checks of test images and ground-truth masks before an evaluation: each mask must fit its image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.training.data.checks import (
    CheckResult,
    ImageInfo,
    inspect_images,
    repeats,
    thread_map,
    warn_of_images,
    warn_of_leaks,
)
from moleflow.training.data.masks import Trait, decode_mask, resized_mask
from moleflow.training.data.samples import Category, Sample
from moleflow.training.data.warnings import WarningList
from moleflow.training.errors import DatasetError

__all__ = ["check_testing"]

_SHAPE_TOLERANCE = 0.02
"""Allowed relative deviation of a mask's aspect ratio, or one pixel of its width, for rounding."""

_ORIENTATION = 0x0112
"""EXIF and TIFF orientation tag (EXIF 2.32, section 4.6.4); 1 is upright."""

_QUARTERS = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""

_TRAIT_MEANINGS = {
    Trait.SOFT: "They are thresholded at half their maximum; store only 0 and 255.",
    Trait.NO_BLACK: "Index 0 is treated as background, whatever its colour; make the background black.",
    Trait.ALPHA: "Opaque pixels are treated as marked; store the mask as grey with a black background.",
}


@dataclass(frozen=True, slots=True)
class _Marks:
    """All masks of one image: the marked fraction, how they were interpreted, and whether orientations differ."""

    fraction: float
    traits: frozenset[Trait]
    orientation_differs: bool


def check_testing(category: Category) -> CheckResult:
    """Check all test images and masks of a product, and warn of training images among them.

    Unreadable training images are ignored here: they are not needed for testing.
    """
    test, good_masks = category.test, category.good_masks
    warnings = WarningList(category.root, category.name)
    infos, problems = inspect_images([sample.path for sample in test])
    learned = inspect_images(category.train)[0]
    warn_of_images(infos, "testing", warnings, learned)
    _warn_of_contradictions(infos, test, warnings)
    warn_of_leaks(learned, infos, "testing", warnings)
    marked = [sample for sample in test if sample.masks and sample.path in infos]
    markings = thread_map(lambda sample: _marking(sample, infos[sample.path]), marked)
    _warn_of_markings({s.path: m for s, m in zip(marked, markings, strict=True) if isinstance(m, _Marks)}, warnings)
    empty = thread_map(_is_empty, good_masks)
    warnings.add(
        "testing",
        "masks of good images that are not empty",
        [path for path, each in zip(good_masks, empty, strict=True) if each is False],
        "They are ignored; move the image to its defect, or remove the mask.",
    )
    problems += tuple(each for each in (*markings, *empty) if isinstance(each, str))
    files = len(test) + sum(len(sample.masks) for sample in test) + len(good_masks)
    return CheckResult(problems, files, tuple(warnings.found))


def _marking(sample: Sample, image: ImageInfo) -> _Marks | str:
    """The masks of an image, or why one of them cannot be used."""
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
            # Rotated by 90° it would not have fitted, unless the image is square.
            height, width = mask.marked.shape
            differs = _has_proportions(height, width, image.width, image.height)
        union = mask.marked if union is None else union | resized_mask(mask.marked, *union.shape)
        traits, turned = traits | mask.traits, turned or differs
    return _Marks(0.0 if union is None else float(union.mean()), traits, turned)


def _misfit(
    mask: Path, shape: tuple[int, ...], image_path: Path, image: ImageInfo, orientation_differs: bool
) -> str | None:
    """Why a mask does not fit its image, or ``None``; ``shape`` is the mask's, upright."""
    height, width = shape
    if _has_proportions(width, height, image.width, image.height):
        return None
    sizes = f"{width} × {height} pixels, but {image_path} has {image.width} × {image.height}"
    if orientation_differs and _has_proportions(height, width, image.width, image.height):
        return f"{mask} has {sizes}: only one of them is rotated by its EXIF orientation; store both upright."
    return f"{mask} has {sizes}: the aspect ratios differ; draw the mask on this image."


def _has_proportions(width: int, height: int, of_width: int, of_height: int) -> bool:
    expected = height * of_width / of_height
    return abs(width - expected) <= max(1.0, _SHAPE_TOLERANCE * width)


def _orientation(path: Path) -> int:
    """A file's EXIF orientation; upright without a readable one."""
    try:
        with Image.open(path) as image:
            stated = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata can raise anything; then the orientation is ignored
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def _is_empty(mask: Path) -> bool | str:
    """Whether a mask is empty, or why it cannot be read."""
    try:
        return not decode_mask(mask).marked.any()
    except DatasetError as error:
        return str(error)


def _warn_of_markings(markings: dict[Path, _Marks], warnings: WarningList) -> None:

    def add(kind: str, chosen: dict[Path, bool], meaning: str) -> None:
        warnings.add("testing", kind, [path for path, each in chosen.items() if each], meaning)

    add(
        "defective images with an empty mask",
        {path: each.fraction == 0 for path, each in markings.items()},
        "All their pixels count as good; mark the defect, or remove the mask.",
    )
    add(
        "defective images whose mask covers every pixel",
        {path: each.fraction == 1 for path, each in markings.items()},
        "None of their pixels counts as good; mark only the defect.",
    )
    add(
        "defective images whose mask covers more than half of them",
        {path: 0.5 < each.fraction < 1 for path, each in markings.items()},
        "Good pixels must be black: if the masks are inverted, invert them.",
    )
    add(
        "masks with another EXIF orientation than their images",
        {path: each.orientation_differs for path, each in markings.items()},
        "Each is rotated by its own orientation; store both upright.",
    )
    for trait, meaning in _TRAIT_MEANINGS.items():
        add(trait, {path: trait in each.traits for path, each in markings.items()}, meaning)


def _warn_of_contradictions(infos: dict[Path, ImageInfo], test: Sequence[Sample], warnings: WarningList) -> None:
    """Warn of duplicate test images, and of duplicates that are labelled both good and defective."""
    defective = {sample.path: sample.is_anomalous for sample in test}
    groups = repeats(infos)
    both = [group for group in groups if len({defective[path] for path in group}) > 1]
    warnings.add(
        "testing",
        "test images that are labelled both good and defective",
        [group[0] for group in both],
        "One label is wrong; keep the right one.",
    )
    warnings.add(
        "testing",
        "test images that are duplicates",
        [path for group in groups for path in group[1:]],
        "They count twice; remove them.",
    )
