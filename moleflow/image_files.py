"""Finding image files: given by name, or anywhere below given folders."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moleflow.model.files.file_names import natural_key
from moleflow.model.files.outputs import reason

__all__ = ["ImageFile", "find_images"]

_SUFFIX = "_overlay.png"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file, and the unique path of its overlay relative to the overlay folder."""

    path: Path
    overlay: Path


def find_images(
    given: Sequence[Path],
    suffixes: frozenset[str],
    on_problem: Callable[[Path, str], None],
    outputs: Path | None = None,
) -> Iterator[ImageFile]:
    """The files in ``given``, and those below its folders whose names end in one of ``suffixes``.

    Folders are traversed lazily in natural order, so that 100,000 files need no list. Hidden entries and the folder
    ``outputs`` are skipped. Links are followed, but no folder is read twice, so cycles end. ``on_problem`` is called
    for a folder that cannot be read or contains no image. Files given by name are yielded even if they do not exist.
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
            on_problem(path, f"the folder contains no image (names that end in {', '.join(sorted(suffixes))}).")


def _walk(
    top: Path,
    place: Path,
    suffixes: frozenset[str],
    seen: set[tuple[int, int] | None],
    on_problem: Callable[[Path, str], None],
) -> Iterator[ImageFile]:
    """The images below ``top``, with a stack because folders may be nested deeper than Python's recursion limit."""
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
    """The folders and images directly in ``folder``: path, path of the overlay, and whether it is a folder.

    Names are read at once, but paths, which take ten times the memory, are made one by one.
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
    # With a.png and a.jpg in one folder, overlay names keep the extension.
    keep_extension = len({Path(name).stem.casefold() for name in images}) < len(images)
    return (
        (folder / name, place / (name if kinds[name] else _overlay_name(name, keep_extension)), kinds[name])
        for name in sorted(kinds, key=natural_key)
    )


def _is_folder(path: Path | str) -> bool:
    """Whether it is a folder or a link to one; false for cyclic links and invalid names."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises on names that are too long


def _full(path: Path) -> Path:
    """The absolute path, without resolving links."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps `..`


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; ``None`` if it is gone."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _overlay_name(name: str, keep_extension: bool) -> str:
    return (name if keep_extension else Path(name).stem) + _SUFFIX


def _places(arguments: Sequence[Path]) -> list[Path]:
    """Where the overlays of each argument go: its name, with as many parent folders as are needed to be unique."""
    paths = [_full(path) for path in arguments]
    folders = [_is_folder(path) for path in arguments]
    if folders == [True]:
        return [Path()]
    for parts in (1, 3):  # the name alone, then with two parent folders
        names = ["_".join(path.parts[1:][-parts:]) for path in paths]
        places = [
            name if is_folder else _overlay_name(name, False) for name, is_folder in zip(names, folders, strict=True)
        ]
        if len({place.casefold() for place in places}) == len(places):
            return [Path(place) for place in places]
    return [
        Path(*path.parts[1:]) if is_folder else Path(*path.parts[1:-1], _overlay_name(path.name, True))
        for path, is_folder in zip(paths, folders, strict=True)
    ]
