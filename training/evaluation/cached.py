"""The figures of a checkpoint on test images whose embeddings are already computed: no backbone, no decoding.

Unlike in the detector, the router sees an image at the white level of its own product, and ``top_k`` is free.
"""

from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field

from moleflow.model.names import find_named
from moleflow.model.products import Products
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.data.datasets import Category
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.evaluation.evaluate import Outcome, measure
from moleflow.training.evaluation.records import CategoryFigures, Figures, Record

__all__ = ["CachedEvaluation", "CategoryMetrics"]

BATCH_SIZE = 8
"""Images in one pass through an expert, as in prediction."""


class CategoryMetrics(Record):
    """Threshold-free figures of one category, routed or with its product named; fractions, 0…1.

    ``None`` if there are no images of one kind, or for pixels no masks.
    """

    name: str
    good: int = Field(ge=0, description="test images without defect")
    defective: int = Field(ge=0, description="test images with a defect")
    image_auroc: float | None
    image_ap: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    routing: float = Field(ge=0, le=1, description="fraction of images that were routed to their own product")

    @classmethod
    def of(cls, category: CategoryFigures, figures: Figures) -> Self:
        """Those of ``category``; ``figures`` are its ``routed`` or its ``named`` ones."""
        kept = figures.model_dump(include={"image_auroc", "image_ap", "pixel_auroc", "pixel_ap"})
        counts = category.model_dump(include={"good", "defective"})
        return cls(name=category.category, routing=category.routing_accuracy, **counts, **kept)


class CachedEvaluation:
    """A checkpoint's products on a device. The image score is the mean of the ``top_k`` highest patches."""

    def __init__(self, checkpoint: Checkpoint, *, top_k: int, device: torch.device, precision: str) -> None:
        self._device, self._products = device, Products(checkpoint, device, precision, top_k=top_k)

    def category(
        self, category: Category, embeddings: Embeddings, on_progress: Callable[[int], None] = lambda count: None
    ) -> CategoryFigures:
        """The figures of ``category``, a task of the checkpoint; ``embeddings`` are those of its test images.

        Figures at a threshold are meaningful only for the checkpoint's own ``score_top_k``.

        Raises:
            ExpertError: an expert is damaged, or its scores are not finite.
        """
        products, info = self._products, find_named(category.name, self._products.infos)
        outcomes: list[Outcome] = []
        for rows in torch.arange(len(embeddings)).split(BATCH_SIZE):
            with torch.inference_mode():
                batch = embeddings.features(rows, self._device)
                routed = products.shortlist(*products.route(batch.embeddings), [info.index] * len(batch))
                pairs = products.find_both(batch, routed, lambda number, product: number)
            outcomes += [Outcome(category.test[row], *pair) for row, pair in zip(rows.tolist(), pairs, strict=True)]
            on_progress(len(rows))
        return measure(category.name, outcomes, seed=info.seed).figures
