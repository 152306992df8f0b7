"""Listing of image folders in natural order, and of files that are not used."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from moleflow.model.files.file_names import as_line, natural_key
from moleflow.model.images.decode import SUFFIXES
from moleflow.training.errors import DatasetError

__all__ = [
    "MAX_LISTED",
    "SUFFIXES_LISTED",
    "Reason",
    "UnusedFile",
    "child",
    "describe_contents",
    "entries",
    "folders",
    "images",
    "is_folder",
    "natural_sort",
    "unused_files",
]

MAX_LISTED = 12
"""Most names listed in an error message; further ones are counted."""

SUFFIXES_LISTED = ", ".join(sorted(SUFFIXES))

_COMPANIONS = frozenset(
    {".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".db", ".ini", ".log", ".html", ".pdf"}
)
"""Suffixes of files that are obviously not images, and need no warning: notes, labels, metadata."""

_APPLE_DOUBLE = "._"
"""Prefix of the metadata files that macOS writes beside each file on foreign file systems."""

Item = TypeVar("Item")


class Reason(StrEnum):
    """Why a file is not used; the value names the files in a warning."""

    SUFFIX = "files with an unsupported suffix"
    HIDDEN = "hidden image files"
    DEEPER = "images in subfolders"
    UNLISTED = "images that the split table does not list"
    ELSEWHERE = "images in folders that are not part of the layout"
    NO_FILE = "broken links and other entries that are not files"
    LINKED_FOLDER = "links to folders, which are not followed"
    BARRED = "folders that cannot be listed"


_UNREAD_SUFFIXES = frozenset({
    ".jp2", ".j2k", ".heic", ".heif", ".avif", ".jxl", ".tga", ".pgm", ".ppm", ".pbm", ".pnm", ".psd", ".dng", ".cr2",
    ".nef", ".arw", ".raw", ".exr", ".dcm",
})  # fmt: skip
"""Suffixes of unsupported image formats."""


@dataclass(frozen=True, slots=True)
class UnusedFile:
    """An unused entry of a product's folder; ``place`` is the folder that the warning names."""

    reason: Reason
    place: Path
    path: Path

    @property
    def is_image(self) -> bool:
        """Whether its suffix is that of an image, supported or not."""
        return self.path.suffix.lower() in SUFFIXES | _UNREAD_SUFFIXES


def images(folder: Path) -> tuple[Path, ...]:
    """The image files directly inside a folder, in natural order; empty if there is no such folder."""
    return tuple(path for path in entries(folder) if path.suffix.lower() in SUFFIXES and _holds(path.is_file))


def folders(folder: Path) -> tuple[Path, ...]:
    """The folders directly inside a folder, in natural order; empty if there is no such folder."""
    return tuple(path for path in entries(folder) if is_folder(path))


def is_folder(path: Path) -> bool:
    return _holds(path.is_dir)


def child(folder: Path, name: str) -> Path:
    """The folder called ``name`` inside ``folder``, ignoring case if there is no exact match; it may be missing."""
    exact = folder / name
    if is_folder(exact):
        return exact
    return next((each for each in folders(folder) if each.name.casefold() == name.casefold()), exact)


def natural_sort(items: Iterable[Item], name: Callable[[Item], str]) -> tuple[Item, ...]:
    """Sort by ``name`` in natural order (``natural_key``)."""
    return tuple(sorted(items, key=lambda item: natural_key(name(item))))


def describe_contents(folder: Path) -> str:
    """For error messages: the names inside a folder, or that it does not exist."""
    if not is_folder(folder):
        return f"There is no folder {folder}."
    names = [as_line(path.name) + ("/" if is_folder(path) else "") for path in entries(folder)]
    if not names:
        return f"{folder} is empty."
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"It contains: {', '.join(names[:MAX_LISTED])}{more}."


def unused_files(product: Path, used: Collection[Path], read: Collection[Path]) -> Iterator[UnusedFile]:
    """Entries of a product's folder that could be images but are not used, in natural order.

    ``used`` are the used files, ``read`` the folders that were searched for images. Links to folders are followed only
    on the way to one of these, so that cycles, or a link to a whole disk, do no harm.
    """
    followed = {above for folder in read for above in (folder, *folder.parents)}
    pending: list[tuple[Path, Path | None]] = [(product, None)]
    while pending:
        folder, above = pending.pop()
        place = folder if folder in read else above
        try:
            inside = natural_sort(folder.iterdir(), attrgetter("name"))
        except OSError:
            yield UnusedFile(Reason.BARRED, folder, folder)
            continue
        below: list[tuple[Path, Path | None]] = []
        for path in inside:
            if is_folder(path):
                if path.is_symlink() and path not in followed:
                    yield UnusedFile(Reason.LINKED_FOLDER, place or folder, path)
                elif not path.name.startswith("."):
                    below.append((path, place))
            elif path not in used:
                reason = _reason(path, inside=folder in read, below=place is not None)
                if reason is not None:
                    yield UnusedFile(reason, place or _top(product, path), path)
        pending += reversed(below)


def _reason(path: Path, *, inside: bool, below: bool) -> Reason | None:
    """Why a file is not used, if it is ``inside`` a searched folder or deeper ``below`` one; ``None`` for clutter."""
    is_image = path.suffix.lower() in SUFFIXES
    if path.name.startswith("."):
        return Reason.HIDDEN if is_image and below and not path.name.startswith(_APPLE_DOUBLE) else None
    if not _holds(path.is_file):
        return Reason.NO_FILE if below else None
    if is_image:
        return Reason.UNLISTED if inside else Reason.DEEPER if below else Reason.ELSEWHERE
    return Reason.SUFFIX if inside and path.suffix.lower() not in _COMPANIONS else None


def _top(product: Path, path: Path) -> Path:
    """The subfolder of ``product`` that contains ``path``, or ``product`` itself."""
    parts = path.relative_to(product).parts
    return product / parts[0] if len(parts) > 1 else product


def _holds(test: Callable[[], bool]) -> bool:
    """``test()``, or ``False`` if it raises ``OSError``, as in a folder without search permission."""
    try:
        return test()
    except OSError:
        return False


def entries(folder: Path) -> tuple[Path, ...]:
    """The entries of a folder that are not hidden, in natural order. ``DatasetError`` if it cannot be listed."""
    if not is_folder(folder):
        return ()
    try:
        return natural_sort((path for path in folder.iterdir() if not path.name.startswith(".")), attrgetter("name"))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed: {error.strerror or error}; check its permissions.") from error
