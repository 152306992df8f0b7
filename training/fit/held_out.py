"""Maps of held-out good images, and what is learned from them: the fusion, and the scores that calibrate verdicts.

The images were not used to fit the expert and the memory that map them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, model_validator

from moleflow.model.config import ModelConfig
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import PatchMaps, ProductParts, ProductScorer, image_scores
from moleflow.model.routing.novelty import background_nll
from moleflow.model.runtime.device import autocast, matmul_dtype
from moleflow.model.verdict.area import Area
from moleflow.model.verdict.masking import inspected_score, map_peak
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.fit.trainer import TaskTrainer

__all__ = [
    "HeldOutMaps",
    "StoredMaps",
    "calibrating_numbers",
    "fit_fusion",
    "held_out_scores",
    "map_held_out",
    "without_unused",
]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutMaps:
    """NLL ``(n, H, W)`` of each patch of ``n`` images and its distances ``(n, kinds, H, W)`` to the memory, float32 on
    the CPU. ``distances`` are ``None`` without a memory.
    """

    nll: torch.Tensor
    distances: torch.Tensor | None

    @classmethod
    def joined(cls, parts: Sequence["HeldOutMaps"]) -> Self:
        """The images of all ``parts``."""
        distances = [part.distances for part in parts if part.distances is not None]
        return cls(torch.cat([part.nll for part in parts]), torch.cat(distances) if distances else None)


class StoredMaps(BaseModel):
    """``HeldOutMaps`` in a JSON document; the values are exact. A document that was cut is invalid."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", extra="forbid")

    shape: tuple[int, int, int]
    kinds: int = 1
    nll: bytes
    distances: bytes | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = 4 * math.prod(self.shape)
        if len(self.nll) != size or (self.distances is not None and len(self.distances) != size * self.kinds):
            raise ValueError("the maps are not of the stated shape")
        return self

    @classmethod
    def of(cls, maps: HeldOutMaps) -> Self:
        """The same maps."""
        count, height, width = maps.nll.shape
        shape = count, height, width
        if maps.distances is None:
            return cls(shape=shape, nll=maps.nll.numpy().tobytes(), distances=None)
        kinds, distances = maps.distances.shape[1], maps.distances.numpy().tobytes()
        return cls(shape=shape, kinds=kinds, nll=maps.nll.numpy().tobytes(), distances=distances)

    def maps(self) -> HeldOutMaps:
        """The same maps."""
        count, *grid = self.shape
        distances = None if self.distances is None else _values(self.distances, (count, self.kinds, *grid))
        return HeldOutMaps(_values(self.nll, self.shape), distances)


def _values(data: bytes, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float32).reshape(shape).copy())


@torch.inference_mode()
def map_held_out(trainer: TaskTrainer, bank: MemoryBank | None, store: Embeddings) -> HeldOutMaps:
    """Map images with a fitted expert and its memory, computed as in prediction."""
    parts = ProductParts(trainer.expert, None if bank is None else bank.to(trainer.device))
    scorer = ProductScorer(trainer.base, parts, matmul_dtype(trainer.precision))
    found = []
    with autocast(trainer.device, trainer.precision):
        for indices in torch.arange(len(store)).split(8):
            nll, distances = scorer.raw_maps(store.features(indices, trainer.device))
            found.append(HeldOutMaps(nll.cpu(), None if distances is None else distances.cpu()))
    return HeldOutMaps.joined(found)


def fit_fusion(config: ModelConfig, maps: HeldOutMaps, inspected: torch.Tensor | None = None) -> Fusion | None:
    """The fusion by the statistics of ``maps``, where they are ``inspected`` ``(H, W)`` or everywhere; ``None`` where
    the scoring caps nothing."""
    if config.scoring.cap is None:
        return None
    if inspected is not None:
        # One row of patches: the statistics ask for no neighbours.
        distances = None if maps.distances is None else maps.distances[..., inspected][:, :, None]
        maps = HeldOutMaps(maps.nll[:, inspected][:, None], distances)
    return Fusion.fit(config.scoring, config.backbone.embedding_dim, maps.nll, maps.distances)


@torch.no_grad()
def held_out_scores(
    config: ModelConfig,
    fusion: Fusion | None,
    maps: HeldOutMaps,
    copies: Sequence[HeldOutMaps] = (),
    area: Area | None = None,
) -> dict[str, torch.Tensor]:
    """Image scores and maxima of pixel maps of ``n`` images and their altered ``copies``, and background NLLs in nats
    ``(n,)`` of the images, by their names in ``moleflow.model.verdict.calibration.TaskCalibration``. Scores and maxima
    are those within ``area``."""
    every = HeldOutMaps.joined([maps, *copies])
    both = PatchMaps(every.nll, every.nll if fusion is None else fusion(every.nll, every.distances))
    scores, peaks = calibrating_numbers(config, both, area)
    return {"scores": scores, "peaks": peaks, "grounds": torch.from_numpy(background_nll(maps.nll.numpy()))}


def calibrating_numbers(config: ModelConfig, maps: PatchMaps, area: Area | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Image scores and maxima of pixel maps, each ``(B,)`` float32 on the CPU, within ``area``."""
    anomaly, mask = maps.anomaly.cpu().numpy(), None if area is None else area.mask
    peaks = torch.tensor([map_peak(each, config.backbone.image_size, mask) for each in anomaly])
    if mask is None:
        return image_scores(maps, config.scoring, config.score_top_k).cpu(), peaks
    scored = maps.nll.cpu().numpy() if config.scoring.memory is None else anomaly
    return torch.tensor([inspected_score(each, mask, config.score_top_k) for each in scored]), peaks


def without_unused(bank: MemoryBank | None, fusion: Fusion | None) -> tuple[MemoryBank | None, Fusion | None]:
    """Memory and fusion without pooled patches, where these have no weight; they predict the same."""
    if bank is None or fusion is None or fusion.gate[1:].any():
        return bank, fusion
    return MemoryBank.of(bank.mean, bank.axes, bank.prototypes), fusion.without_pooled()
