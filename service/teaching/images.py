"""The good images that products are learned from: ``images/PRODUCT/train/good/ID.png`` in the folder for teaching.

That is the layout of MVTec AD, so ``moleflow train FOLDER/images`` learns from it too, and images may be put there by
hand. An image's ID is made of its content, so that the same file is kept once. Images that feedback called good count
as well; they stay where feedback keeps them. All methods block.
"""

import hashlib
import shutil
from pathlib import Path

from moleflow.model.files.atomic import atomic_write
from moleflow.model.files.file_names import natural_key
from moleflow.model.files.sizes import bytes_below
from moleflow.model.images.formats import SUFFIX_OF, SUFFIXES, image_format
from moleflow.service.errors import TeachingError, UnknownImageError
from moleflow.service.responses.teaching import TaughtImage, TaughtImagesResponse
from moleflow.service.settings import Settings
from moleflow.service.teaching.access import using

__all__ = ["TaughtImages", "digest"]

_GOOD = Path("train", "good")
"""Where a product's good images are, in the layout of MVTec AD."""

_DIGEST_BYTES = 16
"""As many as make an accidental repetition impossible."""


def digest(data: bytes) -> str:
    """What identifies a file by its content."""
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES].hex()


class TaughtImages:
    """Good images below ``folder``, and those of the folder for feedback. Several processes may use them at once.

    Raises ``TeachingError`` where a folder cannot be read or written.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self._feedback, self._most = settings.feedback, int(settings.teaching_bytes)

    def keep(self, product: str, data: bytes) -> tuple[str, bool]:
        """Keep a good image; its ID, and whether it was there already.

        Raises ``TeachingError`` also when the folder is full.
        """
        path = self._place(product) / (digest(data) + SUFFIX_OF[image_format(data) or "PNG"])
        with using(self.folder):
            if path.exists():
                return path.name, True
            used = bytes_below(self.folder)
            if used + len(data) > self._most:
                raise TeachingError(
                    f"The folder for teaching is full ({used:,} of {self._most:,} bytes); delete images of products "
                    "that need not be learned again, or raise MOLEFLOW_TEACHING_BYTES."
                )
            with atomic_write(path) as temporary:
                temporary.write_bytes(data)
        return path.name, False

    def listing(self, product: str) -> TaughtImagesResponse:
        """The good images of a product, those of feedback last."""
        images = [
            TaughtImage(id=path.name, bytes=path.stat().st_size, source=source)
            for source, paths in (("upload", self.uploaded(product)), ("feedback", self.given(product)))
            for path in paths
        ]
        return TaughtImagesResponse(
            task=product, images=images, used_bytes=bytes_below(self.folder), max_bytes=self._most
        )

    def uploaded(self, product: str) -> list[Path]:
        """The files that were uploaded, or put there by hand, in natural order."""
        return _images(self._place(product))

    def given(self, product: str) -> list[Path]:
        """The files that feedback called good."""
        return [] if self._feedback is None else _images(self._feedback / product / _GOOD)

    def find(self, product: str, identifier: str) -> Path:
        """The file of an image. Raises ``UnknownImageError``."""
        for path in (*self.uploaded(product), *self.given(product)):
            if path.name == identifier:
                return path
        raise UnknownImageError(
            f"{product!r} has no image {identifier[:64]!r} to learn from; GET /tasks/{product}/images lists them."
        )

    def remove(self, product: str, identifier: str | None = None) -> None:
        """Delete an image, also one of feedback; or all that were uploaded. Raises ``UnknownImageError``."""
        with using(self.folder):
            if identifier is not None:
                self.find(product, identifier).unlink(missing_ok=True)
            elif (place := self.folder / product).is_dir():
                shutil.rmtree(place)

    def rename(self, old: str, new: str) -> None:
        """Let a product's images follow it to its new name, unless there are some of that name."""
        with using(self.folder):
            if (self.folder / old).is_dir() and not (self.folder / new).exists():
                (self.folder / old).rename(self.folder / new)

    def snapshot(self, product: str, folder: Path) -> tuple[int, int]:
        """Lay all good images of a product out below ``folder`` for training, each content once: how many, and how many
        of them are feedback's.

        Files are linked where the file system allows it, so that they take no room and may be deleted meanwhile.
        """
        place, seen, counts = folder / product / _GOOD, set[str](), [0, 0]
        with using(folder):
            place.mkdir(parents=True)
            for kind, paths in enumerate((self.uploaded(product), self.given(product))):
                for path in paths:
                    identifier = digest(path.read_bytes())
                    if identifier not in seen:
                        _link(path, place / (identifier + path.suffix.lower()))
                        seen.add(identifier)
                        counts[kind] += 1
        return sum(counts), counts[1]

    def _place(self, product: str) -> Path:
        return self.folder / product / _GOOD


def _images(folder: Path) -> list[Path]:
    with using(folder):
        try:
            names = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return []
        found = (folder / name for name in sorted(names, key=natural_key) if not name.startswith("."))
        return [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path.resolve())
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)
