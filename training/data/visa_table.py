"""VisA's one-class split table: the split, label and mask of each image."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moleflow.model.names import same_name
from moleflow.training.data.product_folders import spelled_as_on_disk
from moleflow.training.data.samples import is_good
from moleflow.training.errors import DatasetError

__all__ = ["VISA_TABLE", "VisaRow", "visa_rows"]

VISA_TABLE = Path("split_csv") / "1cls.csv"
"""Path of the table relative to the folder of the products (as published)."""

_COLUMNS = ("object", "split", "label", "image", "mask")
"""Columns of the table (as published); its paths are relative to the folder of the products."""


@dataclass(frozen=True, slots=True)
class VisaRow:
    """One row; ``defect`` is ``None`` for a good image."""

    is_training: bool
    defect: str | None
    image: Path
    mask: Path | None


def visa_rows(root: Path, name: str) -> Iterator[VisaRow]:
    """The rows of object ``name`` in the table below ``root``.

    Raises:
        DatasetError: the table is invalid, lists a missing file, has an unknown split or label, or lists an image
            twice.
    """
    table = root / VISA_TABLE
    seen: dict[Path, int] = {}
    for line, row in _rows(table):
        if not same_name(row["object"], name):
            continue
        place = f"{table}, line {line}"
        split, label = row["split"].casefold(), row["label"]
        if split not in ("train", "test") or not label or (split == "train" and not is_good(label)):
            raise DatasetError(
                f"{place}: split {row['split']!r} with label {label!r} is invalid; the split is 'train' or 'test', "
                "training images are 'normal', and any other label names a defect."
            )
        image = _listed(root, row["image"], place)
        if image in seen:
            raise DatasetError(f"{place}: {image} is also listed in line {seen[image]}; remove one of the rows.")
        seen[image] = line
        mask = _listed(root, row["mask"], place) if row["mask"] else None
        yield VisaRow(split == "train", None if is_good(label) else label, image, mask)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of the table with its line number. ``DatasetError`` if the table is invalid."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(f"{table} lacks the column(s) {', '.join(missing)}; expected {', '.join(_COLUMNS)}.")
            for row in reader:
                yield reader.line_num, {column: (row[column] or "").strip() for column in _COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{table} cannot be read as a table ({error}); restore VisA's file, or remove it."
        ) from error


def _listed(root: Path, name: str, place: str) -> Path:
    """A file that the table lists; it must exist."""
    path = spelled_as_on_disk(root / name)
    if not path.is_file():
        raise DatasetError(f"{place}: {path} is listed but missing; restore the file or remove the row.")
    return path
