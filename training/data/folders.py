"""Folders of images: what lies in them, in natural order, and what of it nobody uses."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from moleflow.model.errors import DatasetError
from moleflow.model.files.file_names import as_line, natural_key
from moleflow.model.images.decode import SUFFIXES

__all__ = [
    "MOST_LISTED",
    "SUFFIXES_LISTED",
    "Leftover",
    "Reason",
    "child",
    "entries",
    "folders",
    "images",
    "is_folder",
    "leftovers",
    "naturally",
    "what_is_in",
]

MOST_LISTED = 12
"""Names that an error message lists before it only counts."""

SUFFIXES_LISTED = ", ".join(sorted(SUFFIXES))

_COMPANIONS = frozenset(
    {".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".db", ".ini", ".log", ".html", ".pdf"}
)
"""Names of files that nobody takes for images end like this: notes, labels, and what file managers leave."""

_APPLE_DOUBLE = "._"
"""macOS writes a file of this prefix beside each file on foreign disks. It holds no pixels."""

Item = TypeVar("Item")


class Reason(StrEnum):
    """Why a file is not used."""

    SUFFIX = "files whose name does not end like that of an image that is read"
    HIDDEN = "hidden image files"
    DEEPER = "images in folders below"
    UNLISTED = "images that the table of the split does not list"
    ELSEWHERE = "images in folders that are not part of the layout"
    NO_FILE = "broken links and other things that are no files"
    LINKED_FOLDER = "links to folders, which are not followed"
    BARRED = "folders that cannot be listed"


_UNREAD_SUFFIXES = frozenset(
    {
        ".jp2",
        ".j2k",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".tga",
        ".pgm",
        ".ppm",
        ".pbm",
        ".pnm",
        ".psd",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".raw",
        ".exr",
        ".dcm",
    }
)
"""How image files end that are not read."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something in a product's folder that is not used; ``place`` is the folder that it is told for."""

    reason: Reason
    place: Path
    path: Path

    @property
    def is_image(self) -> bool:
        """Whether it is one by its name, be it of a kind that is not read."""
        return self.path.suffix.lower() in SUFFIXES | _UNREAD_SUFFIXES


def images(folder: Path) -> tuple[Path, ...]:
    """The image files directly inside a folder, in natural order; none when there is no such folder."""
    return tuple(path for path in entries(folder) if path.suffix.lower() in SUFFIXES and _holds(path.is_file))


def folders(folder: Path) -> tuple[Path, ...]:
    """The folders directly inside a folder, in natural order; none when there is no such folder."""
    return tuple(path for path in entries(folder) if is_folder(path))


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; not where a folder above bars the question."""
    return _holds(path.is_dir)


def child(folder: Path, name: str) -> Path:
    """The folder called ``name`` inside ``folder``; where it is only there in other capitals, that one."""
    exact = folder / name
    if is_folder(exact):
        return exact
    return next((each for each in folders(folder) if each.name.casefold() == name.casefold()), exact)


def naturally(items: Iterable[Item], name: Callable[[Item], str]) -> tuple[Item, ...]:
    """Sort by name with numbers by value, capitals ignored; equal names as bytes, so that the order is always one."""
    return tuple(sorted(items, key=lambda item: natural_key(name(item))))


def what_is_in(folder: Path) -> str:
    """For error messages: the names inside a folder, or which of its parents is missing."""
    if not is_folder(folder):
        return f"There is no folder {folder}."
    names = [as_line(path.name) + ("/" if is_folder(path) else "") for path in entries(folder)]
    if not names:
        return f"{folder} is empty."
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"There now: {', '.join(names[:MOST_LISTED])}{more}."


def leftovers(product: Path, used: Collection[Path], read: Collection[Path]) -> Iterator[Leftover]:
    """Whatever in a product's folder could be an image and is not used, in natural order.

    ``used`` are the image files that are, ``read`` the folders that images were looked for in. A link to a folder is
    followed only where it leads to one of these, so that links in a circle, or to a whole disk, cost nothing.
    """
    followed = {above for folder in read for above in (folder, *folder.parents)}
    pending: list[tuple[Path, Path | None]] = [(product, None)]
    while pending:
        folder, above = pending.pop()
        place = folder if folder in read else above
        try:
            inside = naturally(folder.iterdir(), attrgetter("name"))
        except OSError:
            yield Leftover(Reason.BARRED, folder, folder)
            continue
        below: list[tuple[Path, Path | None]] = []
        for path in inside:
            if is_folder(path):
                if path.is_symlink() and path not in followed:
                    yield Leftover(Reason.LINKED_FOLDER, place or folder, path)
                elif not path.name.startswith("."):
                    below.append((path, place))
            elif path not in used:
                reason = _reason(path, inside=folder in read, below=place is not None)
                if reason is not None:
                    yield Leftover(reason, place or _top(product, path), path)
        pending += reversed(below)


def _reason(path: Path, *, inside: bool, below: bool) -> Reason | None:
    """Why a file is not used, ``inside`` a folder that is read or deeper ``below`` one; ``None`` for plain clutter."""
    is_image = path.suffix.lower() in SUFFIXES
    if path.name.startswith("."):
        return Reason.HIDDEN if is_image and below and not path.name.startswith(_APPLE_DOUBLE) else None
    if not _holds(path.is_file):
        return Reason.NO_FILE if below else None
    if is_image:
        return Reason.UNLISTED if inside else Reason.DEEPER if below else Reason.ELSEWHERE
    return Reason.SUFFIX if inside and path.suffix.lower() not in _COMPANIONS else None


def _top(product: Path, path: Path) -> Path:
    """The folder directly inside ``product`` that ``path`` lies in, or ``product`` where it lies in none."""
    parts = path.relative_to(product).parts
    return product / parts[0] if len(parts) > 1 else product


def _holds(asks_the_disk: Callable[[], bool]) -> bool:
    """The answer, or ``False`` where the disk bars it, as in a folder whose names may be read but nothing more."""
    try:
        return asks_the_disk()
    except OSError:
        return False


def entries(folder: Path) -> tuple[Path, ...]:
    """Everything directly inside a folder that is not hidden, in natural order. ``DatasetError`` if it is barred."""
    if not is_folder(folder):
        return ()
    try:
        return naturally((path for path in folder.iterdir() if not path.name.startswith(".")), attrgetter("name"))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed: {error.strerror or error}; check its permissions.") from error
