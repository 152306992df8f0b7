"""Product folders: a product's name is its folder's name in Unicode normal form C."""

from collections.abc import Iterable
from pathlib import Path

from moleflow.model.errors import one_line
from moleflow.model.names import product_name, same_name
from moleflow.training.data.folders import folders
from moleflow.training.errors import DatasetError

__all__ = ["checked_name", "folders_by_name", "product_folder", "spelled_as_on_disk"]


def checked_name(name: str) -> str:
    """A product's name in normal form; ``DatasetError`` if it is invalid."""
    try:
        return product_name(name)
    except ValueError as error:
        raise DatasetError(
            f"{one_line(repr(name))} cannot be a product's name: {one_line(error)}; use the name of a folder in the "
            "data, and rename the folder if necessary."
        ) from error


def folders_by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by product name, in the given order. ``DatasetError`` if two have the same name."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = checked_name(folder.name)
        if name in found:
            raise DatasetError(
                f"{folder.parent} contains two folders called {name!r} in different Unicode forms, "
                f"{found[name].name!a} and {folder.name!a}; rename or remove one."
            )
        found[name] = folder
    return found


def product_folder(root: Path, name: str) -> Path:
    """The folder of the product ``name``, in any Unicode form; it may be missing.

    Raises:
        DatasetError: there are two.
    """
    named = folders_by_name(folder for folder in folders(root) if same_name(folder.name, name))
    return named.get(name, root / name)


def spelled_as_on_disk(path: Path) -> Path:
    """The path in the Unicode form used on disk, which may differ from that in a table."""
    if path.exists() or path.parent == path:
        return path
    folder = spelled_as_on_disk(path.parent)
    if not folder.is_dir():
        return folder / path.name
    return next((each for each in folder.iterdir() if same_name(each.name, path.name)), folder / path.name)
