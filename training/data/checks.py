"""A look into the files of a data set before any work: what cannot be used is an error, what is odd a warning.

Every file is decoded once, a few at a time; of each image only its size, kind and a digest of its values are kept.
"""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from PIL import Image

from moleflow.model.errors import DatasetError, ImageError
from moleflow.model.images.decode import has_deep_values, image_format, open_image, open_rgb
from moleflow.model.runtime.threads import helper_threads
from moleflow.training.data.completeness import is_cut_off
from moleflow.training.data.folders import MOST_LISTED
from moleflow.training.data.samples import Sample
from moleflow.training.data.warnings import Concern, DataWarning, WarningList

__all__ = [
    "Checked",
    "Look",
    "check_training",
    "in_threads",
    "look_at",
    "refuse_unusable",
    "repeats",
    "warn_of_leaks",
    "warn_of_looks",
]

_SHAPE_TOLERANCE = 1.1
"""Images whose proportions differ by more than this factor are told: all are squeezed to the same square."""

_SIZE_TOLERANCE = 4.0
"""And so are those that differ as much in their number of pixels: a detail then has twice the size."""

_ALWAYS_8_BIT = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"})

_READ_AS_STORED = _ALWAYS_8_BIT | {"1", "P", "PA"}
"""Modes that can always be made RGB."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: why files cannot be used, of how many, and warnings about the rest."""

    problems: tuple[str, ...]
    files: int
    warnings: tuple[DataWarning, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a decoded image: its upright size in pixels, what there is to say of it, and a digest."""

    width: int
    height: int
    is_grey: bool
    is_constant: bool
    is_cut_off: bool
    is_deep: bool
    has_more_frames: bool
    digest: bytes


def check_training(name: str, root: Path, train: Sequence[Path], test: Sequence[Sample]) -> Checked:
    """Look into all training images of a product, and for their like among its test images.

    Test images that cannot be read are passed over: they take no part in training.
    """
    warnings = WarningList(root, name)
    looks, problems = look_at(train)
    warn_of_looks(looks, "training", warnings)
    _warn_of_repeats(looks, warnings)
    warn_of_leaks(looks, look_at([sample.path for sample in test])[0], "training", warnings)
    return Checked(problems, len(train), tuple(warnings.found))


def refuse_unusable(what: str, checked: Iterable[Checked]) -> None:
    """One ``DatasetError`` with all files that cannot be used, if there are any; ``what`` they are, as a plural."""
    results = list(checked)
    problems = [problem for each in results for problem in each.problems]
    if problems:
        more = f" (and {len(problems) - MOST_LISTED} more)" if len(problems) > MOST_LISTED else ""
        raise DatasetError(
            f"{len(problems)} of {sum(each.files for each in results)} {what} cannot be used; replace or remove them: "
            f"{' '.join(problems[:MOST_LISTED])}{more}"
        )


def look_at(paths: Sequence[Path]) -> tuple[dict[Path, Look], tuple[str, ...]]:
    """A look at each image, in order, and why the others cannot be used."""
    found = in_threads(_look, paths)
    looks = {path: each for path, each in zip(paths, found, strict=True) if isinstance(each, Look)}
    return looks, tuple(each for each in found if isinstance(each, str))


def _look(path: Path) -> Look | str:
    """A look at one image, or why it cannot be used."""
    try:
        image = open_image(path)
        data = path.read_bytes()
        is_deep = has_deep_values(data)
        if is_deep or image.mode not in _READ_AS_STORED:
            open_rgb(path)  # refuses kinds of values that are not read
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}."
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    values = np.asarray(image)
    if is_deep and image.mode in _ALWAYS_8_BIT:  # Pillow left out half of each value
        return Look(image.width, image.height, False, False, False, True, _has_more_frames(data), _digest(data))
    if image.mode == "RGB" and _is_grey(values):
        values = values[..., 0]  # grey that is stored as RGB is the same image
    return Look(
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
    """Whether a file holds several pages or frames. A second image in a JPEG is a preview, or for a stereo screen."""
    if image_format(data) == "JPEG":
        return False
    with Image.open(io.BytesIO(data)) as image:
        return getattr(image, "n_frames", 1) > 1


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``work`` on every item, in order, a few at a time: decoding runs outside the interpreter lock."""
    with ThreadPoolExecutor(helper_threads()) as pool:
        return list(pool.map(work, items))


def warn_of_looks(
    looks: dict[Path, Look], concerns: Concern, warnings: WarningList, learned: dict[Path, Look] | None = None
) -> None:
    """Warn of images that are damaged, empty, or unlike most of the others, or of those ``learned`` if any are."""
    kind = f"{concerns} images"
    meanings = {
        "is_cut_off": ("that were cut off before their end", "What is missing is grey; restore them."),
        "is_constant": ("of one single colour", "They show nothing; remove them."),
        "has_more_frames": ("of several pages or frames", "The first alone is used; store one image a file."),
    }
    for field, (what, meaning) in meanings.items():
        warnings.add(
            concerns, f"{kind} {what}", [path for path, each in looks.items() if getattr(each, field)], meaning
        )
    usual, most = (learned, "most training images") if learned else (looks, "most")
    if not usual:
        return
    shape = median(each.width / each.height for each in usual.values())
    odd = [path for path, each in looks.items() if _ratio(each.width / each.height, shape) > _SHAPE_TOLERANCE]
    warnings.add(
        concerns,
        f"{kind} of other proportions than {most}",
        odd,
        "Each is squeezed to the model's square in its own way; cut them to one shape.",
    )
    size = median(each.width * each.height for each in usual.values())
    odd = [path for path, each in looks.items() if _ratio(each.width * each.height, size) >= _SIZE_TOLERANCE]
    warnings.add(
        concerns,
        f"{kind} that are much larger or smaller than {most}",
        odd,
        "Details differ in sharpness; take all images at one resolution.",
    )
    for is_so, yes, no, meaning in (
        (
            "is_grey",
            "in grey",
            "in colour",
            "The missing or added colour looks like a defect; make all images of one kind.",
        ),
        (
            "is_deep",
            "of 16 bits",
            "of 8 bits",
            "Their brightness may differ by what each takes for white; save all images with one depth.",
        ),
    ):
        counted = Counter(getattr(each, is_so) for each in usual.values() if not each.is_constant)
        mostly = counted[True] > counted[False]
        odd = [path for path, each in looks.items() if getattr(each, is_so) != mostly and not each.is_constant]
        unlike, like = (no, yes) if mostly else (yes, no)
        warnings.add(concerns, f"{kind} {unlike} where {most} are {like}", odd if counted else [], meaning)


def warn_of_leaks(train: dict[Path, Look], test: dict[Path, Look], concerns: Concern, warnings: WarningList) -> None:
    """Warn of test images that are training images too."""
    learned = {each.digest for each in train.values() if not each.is_constant}
    known = [path for path, each in test.items() if each.digest in learned]
    warnings.add(
        concerns,
        "test images that are training images too",
        known,
        "They were learned by heart and flatter every figure; remove them from one side.",
    )


def repeats(looks: dict[Path, Look]) -> list[list[Path]]:
    """Images with the same values, those of one colour apart; each group in order."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path, each in looks.items():
        if not each.is_constant:
            groups[each.digest].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _warn_of_repeats(looks: dict[Path, Look], warnings: WarningList) -> None:
    surplus = [path for group in repeats(looks) for path in group[1:]]
    warnings.add(
        "training",
        "training images that repeat another one",
        surplus,
        "They weigh double, and where they are held out, the threshold becomes too low; remove them.",
    )


def _is_grey(values: np.ndarray) -> bool:
    return bool((values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all())


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)
