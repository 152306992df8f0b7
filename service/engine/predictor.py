"""What the service needs of a model, and how the real one is loaded."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.verdict.results import CheckpointInfo, Failure, Finding, TaskInfo
from moleflow.service.settings import Settings

__all__ = ["Predictor", "load_predictor"]


class Predictor(Protocol):
    """A loaded model. One thread calls ``warm_up`` and ``predict``; the rest may be read from any thread."""

    @property
    def checkpoint(self) -> CheckpointInfo:
        """Which checkpoint answers."""

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The learned products, in order of learning."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Brings an image to the model's size."""

    @property
    def device(self) -> object:
        """Where the model computes; only its ``str`` is used."""

    @property
    def precision(self) -> str:
        """The number format that the model computes in."""

    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None
    ) -> list[Finding | Failure]:
        """Judge RGB images ``(height, width, 3)`` uint8; ``tasks[i]`` names the expert, else routed or refused.

        An image whose expert is damaged gets a ``Failure``. Whatever is raised concerns the whole batch.
        """

    def warm_up(self, batch_size: int = 1) -> None:
        """Run once on blank images, so that the first request does not pay for set-up."""

    def free_memory(self) -> None:
        """Give back memory that nothing in use needs; called when there is too little of it."""


def load_predictor(settings: Settings) -> Predictor:
    """Load the checkpoint that the settings name. Slow; raises the errors of ``Detector.load``."""
    # Imported here: it brings torch and timm with it, which nothing else in the service needs before this moment.
    from moleflow.model.detector import Detector

    return Detector.load(
        settings.checkpoint,
        device=settings.device,
        precision=settings.precision,
        plugin=settings.plugin,
        false_alarm_rate=settings.false_alarm_rate,
        unknown_limit=settings.unknown_limit,
    )
