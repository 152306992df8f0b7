"""Data sets of one product each: where its good pictures are, and which test pictures and masks belong to it.

Three layouts are read, told apart by the folders that are there:

- MVTec AD: ``PRODUCT/train/good``, ``PRODUCT/test/good``, ``PRODUCT/test/DEFECT`` and
  ``PRODUCT/ground_truth/DEFECT/NAME_mask.png`` (``NAME.png`` is taken too).
- VisA: ``PRODUCT/Data/Images/Normal``, ``…/Anomaly`` and ``PRODUCT/Data/Masks/Anomaly/NAME.png``. The split is that of
  ``split_csv/1cls.csv`` beside the products where it exists; otherwise every normal picture is for training.
- A plain folder of good pictures, ``PRODUCT/*.png``, ``*.jpg`` and so on: training only.

Everything that training needs is checked while a category is loaded, so that a bad file is known before the first
epoch. Files are in natural order of their names (``2.png`` before ``10.png``). Hidden files, and files whose name does
not end as that of a picture does (in either case), are passed over.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from model.errors import DatasetError, ImageError
from model.picture import SUFFIXES, open_for_model, open_image, open_rgb

__all__ = ["Category", "Layout", "Sample", "discover", "load_category", "read_mask", "read_picture"]

_VISA_TABLE = Path("split_csv") / "1cls.csv"
"""Where VisA keeps its one-class split, relative to the folder of the products (as published)."""

_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
"""Columns of that table (as published); the paths in it are relative to the same folder."""

_SUFFIXES_LISTED = ", ".join(sorted(SUFFIXES))

_MOST_THREADS = 4
"""Pictures checked at a time: decoding runs outside the interpreter lock, and each may take hundreds of MB."""

_MOST_LISTED = 12
"""Names that an error message lists before it only counts."""

_JPEG_MASK_LEVEL = 127
"""In a JPEG mask 0 and 255 are blurred by the compression; a pixel is marked above the middle."""


Item = TypeVar("Item")


class Layout(StrEnum):
    """How a product's pictures are laid out on disk."""

    MVTEC = "MVTec AD"
    VISA = "VisA"
    FOLDER = "plain folder"


@dataclass(frozen=True, slots=True)
class Sample:
    """One test picture. ``defect`` names its defect, ``None`` on a good one; ``mask`` marks the defect's pixels."""

    path: Path
    defect: str | None
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        """Whether the picture shows a defect."""
        return self.defect is not None


@dataclass(frozen=True, slots=True)
class Category:
    """One product: its good pictures for training, and labelled pictures for testing (none in a plain folder)."""

    name: str
    root: Path
    layout: Layout
    train: tuple[Path, ...]
    test: tuple[Sample, ...]


def discover(root: Path) -> tuple[str, ...]:
    """Names of the products below ``root``, in natural order. ``DatasetError`` when there are none."""
    names = tuple(folder.name for folder in _folders(root) if _layout(folder) is not None)
    if not names:
        raise DatasetError(
            f"{root} holds no product; there should be one folder per product, in MVTec AD or VisA layout or with good "
            f"pictures directly inside. {_what_is_in(root)}"
        )
    return names


def load_category(root: Path, name: str, *, check: bool = True) -> Category:
    """Find one product's pictures, and check them: every training picture is decoded once, unless ``check`` is false.

    Raises ``DatasetError``, naming the path and what to do, when a folder is missing, when there are no good
    pictures, when any of them cannot be read, or when a mask has no picture. A test picture of a defect may lack a
    mask. Test pictures and masks are only looked up here; they are decoded when an evaluation reads them.
    """
    if Path(name).name != name or name in ("", ".."):
        raise DatasetError(f"{name!r} cannot be a product's name; give the name of one folder inside {root}.")
    folder = root / name
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {folder}, where product {name!r} should be. {_what_is_in(root)}")
    layout = _layout(folder)
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    match layout:
        case Layout.MVTEC:
            train, test = _pictures(folder / "train" / "good"), _mvtec_test(folder)
        case Layout.VISA:
            table = root / _VISA_TABLE
            train, test = _visa_by_table(root, name, table) if table.is_file() else _visa_by_folder(folder)
        case Layout.FOLDER:
            train, test = _pictures(folder), ()
        case None:
            raise DatasetError(
                f"{folder} is no product: it holds neither train/good (MVTec AD), nor Data/Images (VisA), nor pictures "
                f"ending in {_SUFFIXES_LISTED}. {_what_is_in(folder)}"
            )
    if not train:
        source = folder / ("train/good" if layout is Layout.MVTEC else "Data/Images/Normal")
        raise DatasetError(
            f"{source} holds no good pictures to train on; put some there, ending in {_SUFFIXES_LISTED}. "
            f"{_what_is_in(source)}"
        )
    if check:
        _check_readable(train)
    return Category(name=name, root=root, layout=layout, train=train, test=test)


def read_picture(path: Path, side: int | None = None) -> np.ndarray:
    """Decode one picture to RGB, ``(height, width, 3)`` uint8. ``DatasetError`` if it cannot be.

    With the ``side`` of the model's input, it is decoded exactly as the service does, large JPEGs reduced.
    """
    try:
        return open_rgb(path) if side is None else open_for_model(path, side).pixels
    except ImageError as error:
        raise DatasetError(str(error)) from error


def read_mask(path: Path, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Decode one mask to ``(height, width)`` bool, true on the defect; at its own size unless told otherwise.

    Whatever differs from 0 is marked, since data sets write 1, 255 or the number of a defect; resizing takes the
    nearest pixel. An alpha channel is passed over. ``DatasetError`` when the file cannot be read.
    """
    try:
        image = open_image(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    values = np.asarray(image.getchannel(0) if image.mode in ("LA", "PA", "La") else image)
    if values.ndim == 3:
        values = values[..., :3].max(axis=2)
    marked = values > (_JPEG_MASK_LEVEL if image.format == "JPEG" else 0)
    size = (width or marked.shape[1], height or marked.shape[0])
    if size != (marked.shape[1], marked.shape[0]):
        marked = np.asarray(Image.fromarray(marked.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    return marked


def _layout(folder: Path) -> Layout | None:
    """Which layout a product's folder has, or ``None``."""
    if (folder / "train").is_dir():
        return Layout.MVTEC
    if (folder / "Data" / "Images").is_dir():
        return Layout.VISA
    return Layout.FOLDER if _pictures(folder) else None


def _mvtec_test(folder: Path) -> tuple[Sample, ...]:
    """Test pictures in MVTec AD's layout: the good ones first, then each defect's."""
    samples = [Sample(path, None, None) for path in _pictures(folder / "test" / "good")]
    defects = [each.name for each in _folders(folder / "test") if each.name != "good"]
    marked = [each.name for each in _folders(folder / "ground_truth") if each.name != "good"]
    for defect in _naturally({*defects, *marked}, str):
        samples += _with_masks(folder / "test" / defect, folder / "ground_truth" / defect, defect)
    return tuple(samples)


def _visa_by_folder(folder: Path) -> tuple[tuple[Path, ...], tuple[Sample, ...]]:
    """VisA without its table: every normal picture is for training, every anomalous one for testing."""
    images = folder / "Data" / "Images"
    test = _with_masks(images / "Anomaly", folder / "Data" / "Masks" / "Anomaly", "anomaly")
    return _pictures(images / "Normal"), tuple(test)


def _visa_by_table(root: Path, name: str, table: Path) -> tuple[tuple[Path, ...], tuple[Sample, ...]]:
    """VisA by its table: the rows of one object, good test pictures first."""
    train: list[Path] = []
    good: list[Sample] = []
    bad: list[Sample] = []
    for line, row in _rows(table):
        if row["object"] != name:
            continue
        place = f"{table}, line {line}"
        path = _listed(root, row["image"], place)
        match row["split"], row["label"]:
            case "train", "normal":
                train.append(path)
            case "test", "normal":
                good.append(Sample(path, None, None))
            case "test", defect:
                bad.append(Sample(path, defect, _listed(root, row["mask"], place) if row["mask"] else None))
            case split, label:
                raise DatasetError(
                    f"{place}: split {split!r} with label {label!r} is not used here; training takes 'normal' pictures "
                    "only, and a split is 'train' or 'test'."
                )
    if not train:
        raise DatasetError(
            f"{table} lists no normal picture for training on object {name!r}; add such rows, or remove the table to "
            "train on every normal picture."
        )
    _visa_by_folder(root / name)  # for its check that every mask has a picture
    by_name = attrgetter("path.name")
    return _naturally(train, attrgetter("name")), (*_naturally(good, by_name), *_naturally(bad, by_name))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of VisA's table with its line number. ``DatasetError`` when it is not such a table."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _VISA_COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"{table} lacks the column(s) {', '.join(missing)}; VisA's table has {', '.join(_VISA_COLUMNS)}."
                )
            for row in reader:
                yield reader.line_num, {column: (row[column] or "").strip() for column in _VISA_COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{table} cannot be read as a table ({error}); restore VisA's file, or remove it."
        ) from error


def _listed(root: Path, name: str, place: str) -> Path:
    """A file that VisA's table lists; it must be there."""
    path = root / name
    if not path.is_file():
        raise DatasetError(f"{place}: {path} is listed but not there; restore the file or remove the row.")
    return path


def _with_masks(pictures: Path, masks: Path, defect: str) -> list[Sample]:
    """Pair the pictures of one defect with their masks, by name without suffix. A mask without picture is an error."""
    paths = _pictures(pictures)
    stems = {path.stem for path in paths}
    mask_of: dict[str, Path] = {}
    for mask in _pictures(masks):
        stem = mask.stem if mask.stem in stems else mask.stem.removesuffix("_mask")
        if stem not in stems:
            raise DatasetError(
                f"{mask} is a mask without picture: {pictures} holds no picture named {stem!r}; "
                "add that picture or remove the mask."
            )
        if stem in mask_of:
            raise DatasetError(f"{mask} and {mask_of[stem]} are both masks of picture {stem!r}; remove one of them.")
        mask_of[stem] = mask
    return [Sample(path, defect, mask_of.get(path.stem)) for path in paths]


def _check_readable(paths: tuple[Path, ...]) -> None:
    """Decode every picture once, a few at a time, and keep none. One ``DatasetError`` names those that fail."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        problems = [problem for problem in pool.map(_problem, paths) if problem is not None]
    if problems:
        more = f" (and {len(problems) - _MOST_LISTED} more)" if len(problems) > _MOST_LISTED else ""
        raise DatasetError(
            f"{len(problems)} of {len(paths)} training pictures cannot be used; replace or remove them: "
            f"{' '.join(problems[:_MOST_LISTED])}{more}"
        )


def _problem(path: Path) -> str | None:
    """Why a picture cannot be used, or ``None`` when it can."""
    try:
        open_rgb(path)
    except ImageError as error:
        return str(error)
    return None


def _pictures(folder: Path) -> tuple[Path, ...]:
    """The picture files directly inside a folder, in natural order; none when there is no such folder."""
    return tuple(path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and path.is_file())


def _folders(folder: Path) -> tuple[Path, ...]:
    """The folders directly inside a folder, in natural order; none when there is no such folder."""
    return tuple(path for path in _visible(folder) if path.is_dir())


def _visible(folder: Path) -> tuple[Path, ...]:
    """Everything directly inside a folder that is not hidden, in natural order. ``DatasetError`` if it is barred."""
    if not folder.is_dir():
        return ()
    try:
        return _naturally((path for path in folder.iterdir() if not path.name.startswith(".")), attrgetter("name"))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed: {error.strerror or error}; check its permissions.") from error


def _naturally(items: Iterable[Item], name: Callable[[Item], str]) -> tuple[Item, ...]:
    """Sort by name with numbers by value, capitals ignored; equal names as bytes, so that the order is always one."""

    def key(item: Item) -> tuple[list[str | int], str]:
        parts: list[str | int] = list(re.split("([0-9]+)", name(item).casefold()))
        parts[1::2] = map(int, parts[1::2])
        return parts, name(item)

    return tuple(sorted(items, key=key))


def _what_is_in(folder: Path) -> str:
    """For error messages: the names inside a folder, or which of its parents is missing."""
    if not folder.is_dir():
        return f"There is no folder {folder}."
    names = [path.name + ("/" if path.is_dir() else "") for path in _visible(folder)]
    if not names:
        return f"{folder} is empty."
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"There now: {', '.join(names[:_MOST_LISTED])}{more}."
