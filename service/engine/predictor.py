"""The interface of a model, and how the real one is loaded."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from moleflow.model.exported.folder import ExportedFolder, is_exported
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.loading import load_detector
from moleflow.model.verdict.results import CheckpointInfo, Failure, Finding, TaskInfo
from moleflow.service.settings import Settings

__all__ = ["Predictor", "load_predictor", "reload_predictor"]


class Predictor(Protocol):
    """A loaded model. One thread calls the methods; the properties may be read from any thread."""

    @property
    def checkpoint(self) -> CheckpointInfo:
        """The loaded checkpoint."""

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The learned products, in order of learning."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images."""

    @property
    def device(self) -> object:
        """The device that the model runs on; only its ``str`` is used."""

    @property
    def precision(self) -> str:
        """The precision that the model computes in."""

    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None
    ) -> list[Finding | Failure]:
        """Judge RGB images ``(height, width, 3)`` uint8. ``tasks[i]`` names the product; ``None`` routes the image.

        An image whose expert is damaged gets a ``Failure``. An exception means that the whole batch failed.
        """

    def good_scores(self, index: int) -> np.ndarray:
        """The scores of the good images that calibrate the product at ``index``, ascending, ``(n,)``."""

    def warm_up(self, batch_size: int = 1) -> None:
        """Run once on blank images, so that the first request does not pay for initialisation."""

    def free_memory(self) -> None:
        """Release cached memory; called when memory runs out."""


def load_predictor(settings: Settings) -> Predictor:
    """Load the configured checkpoint or exported folder. Slow; raises the errors of ``load_detector``."""
    return load_detector(settings.checkpoint, plugin=settings.plugin, **_options(settings))


def reload_predictor(settings: Settings, previous: Predictor) -> Predictor:
    """Load the configured checkpoint or folder again, to replace ``previous``, which may be in use meanwhile.

    Every section and file is verified. Slow; raises the errors of ``load_detector``.
    """
    if is_exported(settings.checkpoint):
        ExportedFolder.open(settings.checkpoint).verify()
        return load_predictor(settings)
    # Imported here because it imports torch and timm, which nothing else in the service needs.
    from moleflow.model.detector import Detector
    from moleflow.model.store.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(settings.checkpoint)
    checkpoint.verify()
    return Detector(checkpoint, previous=previous if isinstance(previous, Detector) else None, **_options(settings))


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "device": settings.device,
        "precision": settings.precision,
        "engine": settings.engine,
        "false_alarm_rate": settings.false_alarm_rate,
        "unknown_limit": settings.unknown_limit,
    }
