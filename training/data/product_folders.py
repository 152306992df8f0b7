"""Products by their folders: the name is Unicode's normal form of the folder's, however the disk spells it."""

from collections.abc import Iterable
from pathlib import Path

from moleflow.model.errors import DatasetError, one_line
from moleflow.model.names import product_name, same_name
from moleflow.training.data.folders import folders

__all__ = ["checked_name", "folders_by_name", "product_folder", "spelled_as_on_disk"]


def checked_name(name: str) -> str:
    """A product's name in its normal form; ``DatasetError`` says why it cannot be one."""
    try:
        return product_name(name)
    except ValueError as error:
        raise DatasetError(
            f"{one_line(repr(name))} cannot be a product's name: {one_line(error)}; give the name of one folder of the "
            "data, and rename the folder where it has to be."
        ) from error


def folders_by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Each product's folder by the product's name, in the order given. ``DatasetError`` where two are called alike."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = checked_name(folder.name)
        if name in found:
            raise DatasetError(
                f"{folder.parent} holds two folders called {name!r} in different spellings, {found[name].name!a} and "
                f"{folder.name!a}; rename or remove one."
            )
        found[name] = folder
    return found


def product_folder(root: Path, name: str) -> Path:
    """The folder of the product called ``name``, however the disk spells it; it may be missing.

    Raises:
        DatasetError: there are two.
    """
    named = folders_by_name(folder for folder in folders(root) if same_name(folder.name, name))
    return named.get(name, root / name)


def spelled_as_on_disk(path: Path) -> Path:
    """The same path as the disk spells it: a table may have a name composed that a folder has decomposed."""
    if path.exists() or path.parent == path:
        return path
    folder = spelled_as_on_disk(path.parent)
    if not folder.is_dir():
        return folder / path.name
    return next((each for each in folder.iterdir() if same_name(each.name, path.name)), folder / path.name)
