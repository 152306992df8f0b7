"""What a call of the driver has done so far, in a folder beside the checkpoint."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from moleflow.cluster.product_files import open_product
from moleflow.model.errors import CheckpointFormatError
from moleflow.model.files.exclusive import side_file
from moleflow.model.files.outputs import check_output_folder, write_bytes
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.merging import StoredProduct, write_products
from moleflow.training.continual.journal import Journal

__all__ = ["Work"]

PRODUCT = ".product"
"""Ending of the file of a learned product."""

FOLDER = ".ray"
"""What the folder is called after the checkpoint."""


class Work:
    """The folder beside the checkpoint: what a call has done so far, identified by what was ``asked``."""

    def __init__(self, checkpoint: Path, asked: str) -> None:
        self.checkpoint, self.folder = checkpoint, side_file(checkpoint, FOLDER)
        self._journal = self.folder / "journal"
        self._fingerprint = hashlib.sha256(asked.encode()).hexdigest()

    @property
    def begun(self) -> bool:
        """Whether the same call was begun and not completed."""
        return self._journal.exists() and Journal.find(self._journal).fingerprint == self._fingerprint

    def begin(self) -> None:
        check_output_folder("the folder of unfinished products", self.folder)
        Journal(fingerprint=self._fingerprint).write(self._journal)

    def find(self, key: str) -> StoredProduct | None:
        """The learned product with this key; ``None`` if there is none, or its file is damaged."""
        path = self.folder / (key + PRODUCT)
        if not path.exists():
            return None
        try:
            return open_product(path)
        except (ValueError, CheckpointFormatError):
            return None

    def keep(self, key: str, data: bytes) -> StoredProduct:
        """Write the file of a learned product, and open it."""
        path = self.folder / (key + PRODUCT)
        write_bytes("the learned product", path, data)
        return open_product(path)

    def assemble(self, old: Checkpoint, products: Sequence[StoredProduct]) -> None:
        """Write the checkpoint with ``products`` after its own, in this order."""
        if products:
            write_products(self.checkpoint, old, [*StoredProduct.all_of(old), *products])

    def end(self, *, complete: bool) -> None:
        """Remove what is in the checkpoint now; if not ``complete``, the same call may be given again."""
        shutil.rmtree(self.folder)
        if not complete:
            self.begin()
