"""How far results on one device, or of one batch, are from those of another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from moleflow.model.detector import Detector
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.runtime.threads import available_processors
from moleflow.model.verdict.results import Prediction

__all__ = ["Outputs", "as_batch", "maps_of", "moved", "relative_error", "using_every_processor"]


@contextmanager
def using_every_processor() -> Iterator[None]:
    """For what a CPU computes to compare with; tests have a single thread otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(available_processors())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def relative_error(found: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖, infinite if a value that was found is not finite."""
    one, other = (torch.as_tensor(values).detach().cpu().double() for values in (found, expected))
    assert one.shape == other.shape
    assert other.isfinite().all()
    if not one.isfinite().all():
        return float("inf")
    return ((one - other).norm() / other.norm()).item()


def as_batch(images: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Images of the model's size, as ``Detector.embed_and_route`` takes them."""
    return torch.from_numpy(np.stack(images)).to(device)


def moved(features: PatchFeatures, device: torch.device) -> PatchFeatures:
    """The same features on ``device``; waits for the copy."""
    return PatchFeatures(features.embeddings.to(device), tuple(stage.to(device) for stage in features.stages))


@torch.inference_mode()
def maps_of(detector: Detector, features: PatchFeatures, tasks: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL and anomaly maps of features that lie anywhere, on the CPU."""
    maps = detector.products.maps(moved(features, detector.device), tasks)
    return maps.nll.cpu(), maps.anomaly.cpu()


@dataclass(frozen=True)
class Outputs:
    """What a detector makes of images, on the CPU: their features, routing and results; each by its own choice."""

    features: PatchFeatures
    distances: torch.Tensor
    ratios: torch.Tensor
    predictions: list[Prediction]

    @classmethod
    def of(cls, detector: Detector, images: Sequence[np.ndarray]) -> Self:
        with torch.inference_mode():
            features, distances, ratios = detector.embed_and_route(as_batch(images, detector.device))
        here = moved(features, torch.device("cpu"))
        return cls(here, distances.cpu(), ratios.cpu(), detector.predict(images, refuse_unknown=False))

    @property
    def products(self) -> list[int]:
        """The product that each image was routed to."""
        return [each.task.index for each in self.predictions]

    @property
    def scores(self) -> torch.Tensor:
        """Of each image, ``(B,)``."""
        return torch.tensor([each.score for each in self.predictions], dtype=torch.float64)

    @property
    def anomaly(self) -> np.ndarray:
        """Anomaly maps ``(B, H, W)``."""
        return np.stack([each.grid_map for each in self.predictions])
