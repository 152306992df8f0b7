"""A model that fails when told to, and what the health routes answer."""

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from dummy import DummyDetector
from running import Running


class Moody(DummyDetector):
    """Raises ``mood`` unless it is ``None``."""

    mood: BaseException | None = None

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
        if self.mood is not None:
            self.batches.append(len(images))
            raise self.mood
        return super().predict(images, tasks)


def ready(running: Running) -> httpx.Response:
    return running.client.get("/health/ready")


def live(running: Running) -> httpx.Response:
    return running.client.get("/health/live")
