"""Baselines that are fitted to the good images of one category and score images, for the comparison of accuracy.

They are anomalib's models, imported from its package and used without its pre- and post-processing: every baseline
gets the same input tensor as MoLE-Flow and returns its raw score and map, neither normalised nor clamped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from timm import create_model
from timm.data import resolve_data_config

from moleflow.model.errors import ConfigurationError
from moleflow.model.features.extractor import stack_images
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.training.data.datasets import read_image
from moleflow.training.fit.coreset import farthest_first

__all__ = ["METHODS", "Scored", "Scorer", "Setting", "fit_gaussians", "make_scorer"]

CORESET_RATIO = 0.1
"""Fraction of the patches that PatchCore keeps: anomalib's default, and the paper's PatchCore-10 %."""

PADIM_FEATURES = 550
"""Channels that PaDiM draws: the number of anomalib and the paper for WideResNet-50-2."""

PADIM_RIDGE = 0.01 + 1e-5
"""Added to the diagonal of PaDiM's covariances: the two terms that anomalib adds."""

BATCH_SIZE = 8
"""Images at a time. No result depends on it."""

Scored = tuple[float, np.ndarray]
"""An image's raw score, and its raw map ``(height, width)`` float32 at the image's own size."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a baseline is built from. ``layers`` are timm's names of the backbone's stages."""

    backbone: str
    layers: tuple[str, ...]
    image_size: int
    seed: int


class Scorer(Protocol):
    """One model of one category."""

    def fit(self, good: Sequence[Path]) -> None:
        """Learn from good images; called once, before ``score``."""

    def score(self, paths: Sequence[Path]) -> Iterator[Scored]:
        """Scores and maps, in the order of ``paths``."""


class AnomalibScorer:
    """Any of anomalib's models that collects features in train mode and is then fitted at once.

    Args:
        network: the model. In train mode a call stores features; in eval mode it returns ``pred_score`` and
            ``anomaly_map``.
        finish: turns the stored features into the fitted model.
        preprocessing: makes the network's input from an image.
    """

    def __init__(self, network: torch.nn.Module, finish: Callable[[], None], preprocessing: Preprocessing) -> None:
        self.network, self._finish, self.preprocessing = network, finish, preprocessing
        self._scale, self._offset = map(torch.from_numpy, preprocessing.scale_and_offset())

    def fit(self, good: Sequence[Path]) -> None:
        """Collect the features of all images, then fit."""
        self.network.train()
        with torch.no_grad():
            for _, batch in self._batches(good):
                self.network(batch)
            self._finish()
        self.network.eval()

    def score(self, paths: Sequence[Path]) -> Iterator[Scored]:
        """Raw scores and maps; a map is resized bilinearly from the model's size to the image's."""
        with torch.no_grad():
            for rgb_images, batch in self._batches(paths):
                found = self.network(batch)
                scores = found.pred_score.reshape(-1).tolist()
                for rgb_image, score, anomaly_map in zip(rgb_images, scores, found.anomaly_map, strict=True):
                    size = rgb_image.shape[:2]
                    resized = F.interpolate(anomaly_map[None], size=size, mode="bilinear", align_corners=False)
                    yield score, resized[0, 0].float().numpy()

    def _batches(self, paths: Sequence[Path]) -> Iterator[tuple[list[np.ndarray], torch.Tensor]]:
        for start in range(0, len(paths), BATCH_SIZE):
            rgb_images = [read_image(path) for path in paths[start : start + BATCH_SIZE]]
            stacked = stack_images(rgb_images, self.preprocessing.resize, torch.device("cpu"))
            yield rgb_images, torch.addcmul(self._offset, stacked.float(), self._scale).permute(0, 3, 1, 2).contiguous()


def make_scorer(method: str, setting: Setting) -> Scorer:
    """A new model of ``method``. ``ConfigurationError`` when there is no such method."""
    if method not in METHODS:
        raise ConfigurationError(f"method {method!r} is not known; use some of {', '.join(METHODS)}.")
    torch.manual_seed(setting.seed)
    return METHODS[method](setting)


def _preprocessing(setting: Setting) -> Preprocessing:
    """The wanted size, and the mean and std of the backbone's training: as in MoLE-Flow."""
    net = create_model(setting.backbone, features_only=True)
    data = resolve_data_config({}, model=net)
    return Preprocessing(image_size=setting.image_size, mean=tuple(data["mean"]), std=tuple(data["std"]))


def _patchcore(setting: Setting) -> Scorer:
    from anomalib.models.components import KCenterGreedy
    from anomalib.models.image.patchcore import torch_model

    torch_model.KCenterGreedy = _by_farthest_first(KCenterGreedy)
    network = torch_model.PatchcoreModel(layers=list(setting.layers), backbone=setting.backbone)
    return AnomalibScorer(network, lambda: network.subsample_embedding(CORESET_RATIO), _preprocessing(setting))


def _by_farthest_first(greedy: Any) -> Any:
    """anomalib's coreset selection with its random projection and start; chooses the same points in less time."""

    class FarthestFirst(greedy):
        def select_coreset_idxs(self) -> list[int]:
            self.model.fit(self.embedding)
            features = self.model.transform(self.embedding)
            first = int(torch.randint(high=self.n_observations, size=(1,)))
            return farthest_first(features, first, self.coreset_size)

    return FarthestFirst


def _padim(setting: Setting) -> Scorer:
    from anomalib.models.image.padim.torch_model import PadimModel

    network = PadimModel(backbone=setting.backbone, layers=list(setting.layers), n_features=PADIM_FEATURES)

    def finish() -> None:
        bank, network.memory_bank = torch.vstack(network.memory_bank), []
        network.gaussian.mean, network.gaussian.inv_covariance = fit_gaussians(bank)

    return AnomalibScorer(network, finish, _preprocessing(setting))


def fit_gaussians(bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean ``(C, H·W)`` and inverse covariance ``(H·W, C, C)`` at each position of features ``(n, C, H, W)``.

    The values of anomalib's ``MultiVariateGaussian.fit``, which inverts all positions at once. On 784 positions of 550
    channels that failed with PyTorch 2.14.1: "Pivots given to lu_solve must all be greater or equal to 1".
    """
    positions = bank.flatten(2).permute(2, 0, 1)
    ridge = PADIM_RIDGE * torch.eye(bank.shape[1])
    inverses = [torch.linalg.inv(torch.cov(features.T) + ridge) for features in positions]
    return positions.mean(1).T, torch.stack(inverses)


METHODS: dict[str, Callable[[Setting], Scorer]] = {"patchcore": _patchcore, "padim": _padim}
"""The baselines by name."""
