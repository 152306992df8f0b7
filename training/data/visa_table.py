"""VisA's table of its one-class split: which image of which object is for training or testing, and its mask."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moleflow.model.errors import DatasetError
from moleflow.model.names import same_name
from moleflow.training.data.product_folders import spelled_as_on_disk
from moleflow.training.data.samples import is_good

__all__ = ["VISA_TABLE", "VisaRow", "visa_rows"]

VISA_TABLE = Path("split_csv") / "1cls.csv"
"""Where VisA keeps its one-class split, relative to the folder of the products (as published)."""

_COLUMNS = ("object", "split", "label", "image", "mask")
"""Columns of that table (as published); the paths in it are relative to the same folder."""


@dataclass(frozen=True, slots=True)
class VisaRow:
    """One image of the table; ``defect`` is ``None`` on a good one."""

    is_training: bool
    defect: str | None
    image: Path
    mask: Path | None


def visa_rows(root: Path, name: str) -> Iterator[VisaRow]:
    """The rows of object ``name`` in the table below ``root``.

    Raises:
        DatasetError: it is not such a table, a file that it lists is not there, a split or label is none that is
            used, or an image is listed twice.
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
                f"{place}: split {row['split']!r} with label {label!r} is not used here; training takes 'normal' "
                "images only, a split is 'train' or 'test', and another label names a defect."
            )
        image = _listed(root, row["image"], place)
        if image in seen:
            raise DatasetError(f"{place}: {image} is listed in line {seen[image]} already; remove one of the rows.")
        seen[image] = line
        mask = _listed(root, row["mask"], place) if row["mask"] else None
        yield VisaRow(split == "train", None if is_good(label) else label, image, mask)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of the table with its line number. ``DatasetError`` when it is not such a table."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"{table} lacks the column(s) {', '.join(missing)}; VisA's table has {', '.join(_COLUMNS)}."
                )
            for row in reader:
                yield reader.line_num, {column: (row[column] or "").strip() for column in _COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{table} cannot be read as a table ({error}); restore VisA's file, or remove it."
        ) from error


def _listed(root: Path, name: str, place: str) -> Path:
    """A file that the table lists; it must be there."""
    path = spelled_as_on_disk(root / name)
    if not path.is_file():
        raise DatasetError(f"{place}: {path} is listed but not there; restore the file or remove the row.")
    return path
