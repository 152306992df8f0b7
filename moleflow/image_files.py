"""The image files that a command is given: files, and folders with all that lies below them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moleflow.model.files.file_names import natural_key
from moleflow.model.files.outputs import reason

__all__ = ["ImageFile", "find_images"]

_SUFFIX = "_overlay.png"
"""Ending of an overlay's name."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file to be read, and where its overlay goes, relative to the folder of overlays: no two go to one place."""

    path: Path
    overlay: Path


def find_images(
    given: Sequence[Path],
    suffixes: frozenset[str],
    on_problem: Callable[[Path, str], None],
    outputs: Path | None = None,
) -> Iterator[ImageFile]:
    """The files among ``given``, and those below its folders whose names end in one of ``suffixes``, one by one.

    Folders are read in natural order, entry by entry as they are come to, so that 100,000 files need no list. Hidden
    entries are passed over, and so is the folder ``outputs``. Links are followed; a folder that was read already, as
    in a circle of links, is not read again. ``on_problem`` is told of a folder that cannot be read or holds no image.
    Whatever file is given by its name is taken, whether it is there or not.
    """
    seen = {None if outputs is None else _identity(outputs)}
    arguments = list({_full(path): path for path in given}.values())
    for path, place in zip(arguments, _places(arguments), strict=True):
        if not _is_folder(path):
            yield ImageFile(path, place)
            continue
        identity = _identity(path)
        if identity is not None and identity in seen:
            continue
        found = False
        for image in _walk(path, place, suffixes, seen, on_problem):
            found = True
            yield image
        if not found:
            on_problem(path, f"the folder holds no image, of names that end in {', '.join(sorted(suffixes))}.")


def _walk(
    top: Path, place: Path, suffixes: frozenset[str], seen: set[tuple[int, int] | None],
    on_problem: Callable[[Path, str], None],
) -> Iterator[ImageFile]:  # fmt: skip
    """The images below ``top``; a stack instead of recursion, since folders may lie deeper than calls may."""
    pending: list[Iterator[tuple[Path, Path, bool]]] = [iter([(top, place, True)])]
    while pending:
        path, overlay, is_folder = next(pending[-1], (None, place, False))
        if path is None:
            pending.pop()
        elif not is_folder:
            yield ImageFile(path, overlay)
        elif (identity := _identity(path)) is None or identity not in seen:
            seen.add(identity)
            try:
                pending.append(_entries(path, overlay, suffixes))
            except OSError as error:
                on_problem(path, f"the folder cannot be read: {reason(error)}.")


def _entries(folder: Path, place: Path, suffixes: frozenset[str]) -> Iterator[tuple[Path, Path, bool]]:
    """The folders and images directly inside ``folder``: path, place of the overlay, and whether it is a folder.

    Its names are all read at once, paths are made one by one: they take ten times the memory.
    """
    kinds: dict[str, bool] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_folder = _is_folder(entry.path)
            if is_folder or Path(entry.name).suffix.lower() in suffixes:
                kinds[entry.name] = is_folder
    images = [name for name, is_folder in kinds.items() if not is_folder]
    # Where a.png and a.jpg lie side by side, their whole names tell the overlays apart.
    whole = len({Path(name).stem.casefold() for name in images}) < len(images)
    return (
        (folder / name, place / (name if kinds[name] else _overlay_name(name, whole)), kinds[name])
        for name in sorted(kinds, key=natural_key)
    )


def _is_folder(path: Path | str) -> bool:
    """Whether it is a folder or a link to one; links in a circle, and names that cannot be, are none."""
    return os.path.isdir(path)  # noqa: PTH112 - pathlib's raises on a name that is too long


def _full(path: Path) -> Path:
    """An absolute path that keeps the names of links."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - pathlib's keeps `..`


def _identity(folder: Path) -> tuple[int, int] | None:
    """What a folder is, whatever it is called; nothing where it is gone."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _overlay_name(name: str, whole: bool) -> str:
    return (name if whole else Path(name).stem) + _SUFFIX


def _places(arguments: Sequence[Path]) -> list[Path]:
    """Where the overlays of each argument go: by its name, and as much of its folder's as tells all apart."""
    paths = [_full(path) for path in arguments]
    folders = [_is_folder(path) for path in arguments]
    if folders == [True]:
        return [Path()]
    for parents in (1, 3):  # only the name itself; two folders in front of it
        names = ["_".join(path.parts[1:][-parents:]) for path in paths]
        places = [
            name if is_folder else _overlay_name(name, False) for name, is_folder in zip(names, folders, strict=True)
        ]
        if len({place.casefold() for place in places}) == len(places):
            return [Path(place) for place in places]
    return [
        Path(*path.parts[1:]) if is_folder else Path(*path.parts[1:-1], _overlay_name(path.name, True))
        for path, is_folder in zip(paths, folders, strict=True)
    ]
