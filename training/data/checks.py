"""Checks of a product's images before training or evaluation: unusable files are errors, oddities are warnings.

Every file is decoded once; only its size, properties and a digest of its values are kept.
"""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from PIL import Image

from moleflow.model.errors import ImageError
from moleflow.model.images.decode import has_deep_values, image_format, open_image, open_rgb
from moleflow.model.runtime.threads import helper_threads
from moleflow.training.data.completeness import is_cut_off
from moleflow.training.data.folders import MAX_LISTED
from moleflow.training.data.samples import Category
from moleflow.training.data.warnings import Concern, DataWarning, WarningList
from moleflow.training.errors import DatasetError

__all__ = [
    "CheckResult",
    "ImageInfo",
    "check_training",
    "inspect_images",
    "repeats",
    "thread_map",
    "warn_of_images",
    "warn_of_leaks",
    "with_checks",
]

_SHAPE_TOLERANCE = 1.1
"""Warn of aspect ratios that differ from the median by more than this factor: all images are resized to a square."""

_SIZE_TOLERANCE = 4.0
"""Warn of pixel counts that differ from the median by this factor or more: details then differ in scale by two."""

_ALWAYS_8_BIT = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"})

_READ_AS_STORED = _ALWAYS_8_BIT | {"1", "P", "PA"}
"""Modes that can always be converted to RGB."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Problems of unusable files, the number of files checked, and warnings about the rest."""

    problems: tuple[str, ...]
    files: int
    warnings: tuple[DataWarning, ...]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of a decoded image: upright size in pixels, flags, and a digest of its values."""

    width: int
    height: int
    is_grey: bool
    is_constant: bool
    is_cut_off: bool
    is_deep: bool
    has_more_frames: bool
    digest: bytes


def check_training(category: Category) -> CheckResult:
    """Check all training images of a product, and warn of test images among them.

    Unreadable test images are ignored here: they are not needed for training.
    """
    warnings = WarningList(category.root, category.name)
    infos, problems = inspect_images(category.train)
    warn_of_images(infos, "training", warnings)
    _warn_of_repeats(infos, warnings)
    warn_of_leaks(infos, inspect_images([sample.path for sample in category.test])[0], "training", warnings)
    return CheckResult(problems, len(category.train), tuple(warnings.found))


def with_checks(what: str, categories: Sequence[Category], check: Callable[[Category], CheckResult]) -> list[Category]:
    """``categories`` with the warnings of ``check``; ``what`` names the checked files, in the plural.

    Raises:
        DatasetError: some files are unusable; all are named.
    """
    results = [check(each) for each in categories]
    problems = [problem for each in results for problem in each.problems]
    if problems:
        more = f" (and {len(problems) - MAX_LISTED} more)" if len(problems) > MAX_LISTED else ""
        raise DatasetError(
            f"{len(problems)} of {sum(each.files for each in results)} {what} cannot be used; replace or remove them: "
            f"{' '.join(problems[:MAX_LISTED])}{more}"
        )
    return [
        replace(each, warnings=(*each.warnings, *found.warnings))
        for each, found in zip(categories, results, strict=True)
    ]


def inspect_images(paths: Sequence[Path]) -> tuple[dict[Path, ImageInfo], tuple[str, ...]]:
    """The properties of each usable image, in order, and the problems of the others."""
    found = thread_map(_inspect, paths)
    infos = {path: each for path, each in zip(paths, found, strict=True) if isinstance(each, ImageInfo)}
    return infos, tuple(each for each in found if isinstance(each, str))


def _inspect(path: Path) -> ImageInfo | str:
    """The properties of one image, or why it cannot be used."""
    try:
        image = open_image(path)
        data = path.read_bytes()
        is_deep = has_deep_values(data)
        if is_deep or image.mode not in _READ_AS_STORED:
            open_rgb(path)  # raises for unsupported value types
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}."
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    values = np.asarray(image)
    if is_deep and image.mode in _ALWAYS_8_BIT:  # Pillow dropped the low bytes
        return ImageInfo(image.width, image.height, False, False, False, True, _has_more_frames(data), _digest(data))
    if image.mode == "RGB" and _is_grey(values):
        values = values[..., 0]  # grey stored as RGB counts as the same image
    return ImageInfo(
        width=image.width,
        height=image.height,
        is_grey=values.ndim == 2 or image.mode == "LA",
        is_constant=bool((values == values[0, 0]).all()),
        is_cut_off=is_cut_off(data, values),
        is_deep=is_deep,
        has_more_frames=_has_more_frames(data),
        digest=_digest(f"{values.shape}{values.dtype}".encode() + values.tobytes()),
    )


def _has_more_frames(data: bytes) -> bool:
    """Whether a file has several pages or frames. A second image in a JPEG is a preview or a stereo view."""
    if image_format(data) == "JPEG":
        return False
    with Image.open(io.BytesIO(data)) as image:
        return getattr(image, "n_frames", 1) > 1


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def thread_map(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``[work(item) for item in items]`` on several threads; decoding releases the GIL."""
    with ThreadPoolExecutor(helper_threads()) as pool:
        return list(pool.map(work, items))


def warn_of_images(
    infos: dict[Path, ImageInfo], concerns: Concern, warnings: WarningList, learned: dict[Path, ImageInfo] | None = None
) -> None:
    """Warn of images that are damaged, empty, or unlike most of the ``learned`` images (by default, of themselves)."""
    kind = f"{concerns} images"
    meanings = {
        "is_cut_off": ("that are truncated", "The missing part is grey; restore them."),
        "is_constant": ("of a single colour", "They show nothing; remove them."),
        "has_more_frames": ("with several pages or frames", "Only the first is used; store one image per file."),
    }
    for field, (what, meaning) in meanings.items():
        warnings.add(
            concerns, f"{kind} {what}", [path for path, each in infos.items() if getattr(each, field)], meaning
        )
    usual, most = (learned, "most training images") if learned else (infos, "most")
    if not usual:
        return
    shape = median(each.width / each.height for each in usual.values())
    odd = [path for path, each in infos.items() if _ratio(each.width / each.height, shape) > _SHAPE_TOLERANCE]
    warnings.add(
        concerns,
        f"{kind} with another aspect ratio than {most}",
        odd,
        "Resizing to the model's square distorts them differently; crop them to one aspect ratio.",
    )
    size = median(each.width * each.height for each in usual.values())
    odd = [path for path, each in infos.items() if _ratio(each.width * each.height, size) >= _SIZE_TOLERANCE]
    warnings.add(
        concerns,
        f"{kind} that are much larger or smaller than {most}",
        odd,
        "Details differ in sharpness; take all images at the same resolution.",
    )
    for is_so, yes, no, meaning in (
        (
            "is_grey",
            "in grey",
            "in colour",
            "The difference looks like a defect; use either grey or colour for all images.",
        ),
        (
            "is_deep",
            "with 16 bits",
            "with 8 bits",
            "Their brightness may differ, as white is not the same; save all images with one bit depth.",
        ),
    ):
        counted = Counter(getattr(each, is_so) for each in usual.values() if not each.is_constant)
        mostly = counted[True] > counted[False]
        odd = [path for path, each in infos.items() if getattr(each, is_so) != mostly and not each.is_constant]
        unlike, like = (no, yes) if mostly else (yes, no)
        warnings.add(concerns, f"{kind} {unlike} where {most} are {like}", odd if counted else [], meaning)


def warn_of_leaks(
    train: dict[Path, ImageInfo], test: dict[Path, ImageInfo], concerns: Concern, warnings: WarningList
) -> None:
    learned = {each.digest for each in train.values() if not each.is_constant}
    known = [path for path, each in test.items() if each.digest in learned]
    warnings.add(
        concerns,
        "test images that are also training images",
        known,
        "They make all metrics too optimistic; remove them from one of the two.",
    )


def repeats(infos: dict[Path, ImageInfo]) -> list[list[Path]]:
    """Groups of images with identical values, in order; images of a single colour are left out."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path, each in infos.items():
        if not each.is_constant:
            groups[each.digest].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _warn_of_repeats(infos: dict[Path, ImageInfo], warnings: WarningList) -> None:
    surplus = [path for group in repeats(infos) for path in group[1:]]
    warnings.add(
        "training",
        "training images that are duplicates",
        surplus,
        "They count twice, and if one is held out, the threshold is too low; remove them.",
    )


def _is_grey(values: np.ndarray) -> bool:
    return bool((values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all())


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)
