"""The images of a folder, and what is wrong with folders in it."""

from collections.abc import Iterator
from pathlib import Path

from moleflow.client.errors import UnreadableFileError

__all__ = ["images_below"]


def images_below(folder: Path) -> Iterator[tuple[Path, UnreadableFileError | None]]:
    """Every image below a folder, or the folder and why it cannot be used."""
    from moleflow.image_files import find_images
    from moleflow.model.images.decode import SUFFIXES

    problems: list[tuple[Path, UnreadableFileError | None]] = []

    def note(path: Path, problem: str) -> None:
        problems.append((path, UnreadableFileError(f"{path}: {problem}")))

    for image in find_images([folder], SUFFIXES, note):
        yield from problems
        problems.clear()
        yield image.path, None
    yield from problems
