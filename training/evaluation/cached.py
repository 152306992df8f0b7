"""Metrics of a checkpoint on test images whose embeddings are there already: no backbone, no decoding."""

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field

from moleflow.model.flow.merged import MergedExpert
from moleflow.model.routing.router import Router, image_descriptor
from moleflow.model.runtime.device import autocast, matmul_dtype
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.scoring import image_score, pixel_map
from moleflow.training.data.datasets import Category
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.evaluation.figures import labelled_pixels
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores, image_ranking

__all__ = ["CachedEvaluation", "CategoryMetrics"]

BATCH_SIZE = 8
"""Images in one pass through an expert, as in prediction."""


class CategoryMetrics(BaseModel):
    """One category's test images, each scored by the expert that the router chose, or by its own. Shares, 0…1.

    ``None`` where there are no images of either kind, or for pixels no masks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    good: int = Field(ge=0, description="test images without defect")
    defective: int = Field(ge=0, description="test images with one")
    image_auroc: float | None
    image_ap: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    routing: float = Field(ge=0, le=1, description="share of images that were routed to their own product")


class CachedEvaluation:
    """A checkpoint's router and experts on a device.

    ``top_k`` patches make the image score. Where the product is ``named``, its expert scores every image, whatever
    the router says.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, top_k: int, device: torch.device, precision: str, named: bool = False
    ) -> None:
        self._checkpoint, self._top_k, self._device, self._precision = checkpoint, top_k, device, precision
        self._named = named
        self._router = Router([checkpoint.profile(task.index).prototype for task in checkpoint.header.tasks]).to(device)
        self._experts: dict[int, MergedExpert] = {}

    def category(
        self, category: Category, embeddings: Embeddings, on_progress: Callable[[int], None] = lambda count: None
    ) -> CategoryMetrics:
        """The metrics of ``category``, a task of the checkpoint; ``embeddings`` are those of its test images."""
        own = self._checkpoint.header.task(category.name).index
        size = self._checkpoint.header.preprocessing.image_size
        scores: list[float] = []
        pixels, routed = PixelScores(), 0
        for rows in torch.arange(len(embeddings)).split(BATCH_SIZE):
            batch = embeddings.batch(rows, self._device)
            chosen = self._router(image_descriptor(batch))[0].argmin(1).tolist()
            routed += chosen.count(own)
            maps = self._score(batch, [own] * len(rows) if self._named else chosen)
            scores += image_score(maps, self._top_k).tolist()
            for sample, grid_map in zip((category.test[row] for row in rows.tolist()), maps.cpu().numpy(), strict=True):
                anomaly_map = pixel_map(grid_map, size, EVALUATION_SIDE, EVALUATION_SIDE)
                pixels.append(labelled_pixels(sample, anomaly_map))
            on_progress(len(rows))
        labels = [sample.is_anomalous for sample in category.test]
        image, pixel = image_ranking(scores, labels), pixels.ranking()
        return CategoryMetrics(
            name=category.name,
            good=labels.count(False),
            defective=labels.count(True),
            image_auroc=image.auroc,
            image_ap=image.average_precision,
            pixel_auroc=pixel.auroc,
            pixel_ap=pixel.average_precision,
            routing=routed / len(labels),
        )

    @torch.inference_mode()
    def _score(self, embeddings: torch.Tensor, tasks: list[int]) -> torch.Tensor:
        """Patch maps ``(B, H, W)`` of embeddings ``(B, H, W, D)``, each by the expert of its entry in ``tasks``."""
        maps = embeddings.new_empty(embeddings.shape[:3], dtype=torch.float32)
        for task in sorted(set(tasks)):
            members = [row for row, index in enumerate(tasks) if index == task]
            with autocast(self._device, self._precision):
                maps[members] = self._expert(task)(embeddings[members])
        return maps

    def _expert(self, task: int) -> MergedExpert:
        if task not in self._experts:
            base, expert = self._checkpoint.base(task), self._checkpoint.expert(task)
            dtype = matmul_dtype(self._precision)
            self._experts[task] = MergedExpert(base.to(self._device), expert.to(self._device), dtype)
        return self._experts[task]
