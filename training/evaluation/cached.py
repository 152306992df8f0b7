"""The figures of a checkpoint on test images whose embeddings are already computed: no backbone, no decoding.

Unlike in the detector, the router sees an image at the white level of its own product, and ``top_k`` is free.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field

from moleflow.model.detector import MAX_EXPERTS
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.scorer import image_scores
from moleflow.model.routing.router import Router, image_descriptor
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.experts import Experts
from moleflow.model.verdict.results import Candidate, Prediction
from moleflow.training.data.datasets import Category
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.evaluation.evaluate import Outcome, measure
from moleflow.training.evaluation.records import CategoryFigures, Figures

__all__ = ["CachedEvaluation", "CategoryMetrics"]

BATCH_SIZE = 8
"""Images in one pass through an expert, as in prediction."""


class CategoryMetrics(BaseModel):
    """Threshold-free figures of one category, routed or with its product named; fractions, 0…1.

    ``None`` if there are no images of one kind, or for pixels no masks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        return cls(
            name=category.category,
            good=category.good,
            defective=category.defective,
            image_auroc=figures.image_auroc,
            image_ap=figures.image_ap,
            pixel_auroc=figures.pixel_auroc,
            pixel_ap=figures.pixel_ap,
            routing=category.routing_accuracy,
        )


class CachedEvaluation:
    """A checkpoint's router and experts on a device. The image score is the mean of the ``top_k`` highest patches."""

    def __init__(self, checkpoint: Checkpoint, *, top_k: int, device: torch.device, precision: str) -> None:
        self._header, self._top_k, self._device = checkpoint.header, top_k, device
        profiles = [checkpoint.profile(task.index) for task in checkpoint.header.tasks]
        self._router = Router([each.prototype for each in profiles]).to(device)
        self._calibrations = [each.calibration for each in profiles]
        self._experts = Experts(checkpoint, device, precision, MAX_EXPERTS)

    def category(
        self, category: Category, embeddings: Embeddings, on_progress: Callable[[int], None] = lambda count: None
    ) -> CategoryFigures:
        """The figures of ``category``, a task of the checkpoint; ``embeddings`` are those of its test images.

        Figures at a threshold are meaningful only for the checkpoint's own ``score_top_k``.

        Raises:
            ExpertError: an expert is damaged, or its scores are not finite.
        """
        info = self._header.task(category.name)
        outcomes: list[Outcome] = []
        for rows in torch.arange(len(embeddings)).split(BATCH_SIZE):
            batch = embeddings.features(rows, self._device)
            distances = self._router(image_descriptor(batch.embeddings))[0]
            nearest, own = distances.argmin(1).tolist(), [info.index] * len(batch)
            routed = self._predict(batch, nearest, distances)
            named = routed if nearest == own else self._predict(batch, own, distances)
            samples = [category.test[row] for row in rows.tolist()]
            outcomes += map(Outcome, samples, routed, named)
            on_progress(len(rows))
        return measure(category.name, outcomes, seed=info.seed).figures

    @torch.inference_mode()
    def _predict(self, features: PatchFeatures, tasks: Sequence[int], distances: torch.Tensor) -> list[Prediction]:
        """The results for ``features``, each by the expert of its entry in ``tasks``."""
        maps, failed = self._experts.maps(features, tasks)
        for error in failed.values():
            raise error
        found = []
        scores = image_scores(maps, self._header.config.scoring, self._top_k).tolist()
        scored = zip(tasks, maps.anomaly.cpu().numpy(), scores, strict=True)
        for row, (task, grid_map, score) in enumerate(scored):
            calibration, distance = self._calibrations[task], distances[row, task].item()
            p_value = calibration.distances.p_value(distance)
            candidate = Candidate(self._header.tasks[task].name, task, distance, p_value, distance_ratio=0.0)
            found.append(
                Prediction(
                    (candidate,),
                    task=candidate,
                    score=score,
                    grid_map=grid_map,
                    model_size=self._header.preprocessing.image_size,
                    calibration=calibration,
                )
            )
        return found
