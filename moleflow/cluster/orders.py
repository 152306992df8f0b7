"""The order of each product: which files it has, and by which key its results are found again."""

import dataclasses
import hashlib

from moleflow.cluster.worker import Order
from moleflow.model.features.backbone import patch_grid
from moleflow.model.store.checkpoint import FORMAT_VERSION, Header
from moleflow.model.verdict.outlines import area_of
from moleflow.training.data.areas import Drawings
from moleflow.training.data.datasets import Category, load_category

__all__ = ["Orders"]


class Orders:
    """Makes orders after a ``template``, for the checkpoint with this ``header``; ``areas`` are those of products.

    Raises ``TaskError`` for an area that has too few patches, or all.
    """

    def __init__(self, header: Header, areas: Drawings, template: Order) -> None:
        self._header, self._template = header, template
        config = header.config
        self._areas = {
            name: area_of(drawing, patch_grid(config.backbone), config.score_top_k)
            for name, drawing in areas.items()
            if drawing is not None
        }

    def find(self, name: str) -> Category:
        """The files of a product, not yet opened. ``DatasetError`` if there are none."""
        return load_category(self._template.data, name, check=False)

    def make(self, category: Category) -> Order:
        """The order of a product."""
        return dataclasses.replace(
            self._template,
            key=self._key(category),
            name=category.name,
            area=self._areas.get(category.name),
            warnings=tuple(category.warnings_on("training")),
        )

    def _key(self, category: Category) -> str:
        """A digest of what the product is learned from; of the images their names, sizes and times."""
        header, template = self._header, self._template
        digest = hashlib.sha256(
            f"{FORMAT_VERSION}|{category.name}|{header.config.model_dump_json()}|{header.base_sha256}|"
            f"{header.backbone_sha256}|{template.training.model_dump_json()}|{template.precision}".encode()
        )
        area = self._areas.get(category.name)
        digest.update(f"|{None if area is None else area.patches}".encode())
        for path in category.train:
            found = path.stat()
            digest.update(f"|{path.name!a}|{found.st_size}|{found.st_mtime_ns}".encode())
        return digest.hexdigest()
