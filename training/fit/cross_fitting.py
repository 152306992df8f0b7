"""Held-out scores for calibration: good images scored by an expert that was not fitted to them.

With many good images, some are held out of the fit. With few, that would leave too few on both sides, so they are
cross-fitted: split into folds, each scored by a temporary expert that was fitted to the other folds. The final expert
is then fitted to *all* images. It has seen more images than the temporary ones, so unseen good images score lower with
it, if anything, and the false-positive rate errs on the safe side (cross-conformal prediction, Vovk 2015; CV+, Barber
et al. 2021). The task that learns the base is treated alike, with a temporary base per fold. The cost is one fit per
fold, each to a little less than all images.

The router's distances are always cross-fitted: a prototype needs no training.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict

from moleflow.model.config import ModelConfig, RouterConfig
from moleflow.model.flow.expert import Base
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.routing.novelty import background_nll
from moleflow.model.routing.router import Prototype, Router
from moleflow.model.runtime.device import autocast, matmul_dtype
from moleflow.model.verdict.calibration import MIN_SCORES
from moleflow.model.verdict.scoring import image_score, pixel_map
from moleflow.training.config import TrainingConfig
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.errors import DatasetError
from moleflow.training.fit.resume import ResumableFit
from moleflow.training.fit.trainer import TaskTrainer, task_seed

__all__ = [
    "MIN_IMAGES",
    "FoldScores",
    "HeldOutScores",
    "Split",
    "cross_fit",
    "cross_fitted_distances",
    "score_held_out",
    "split",
]

MIN_IMAGES = MIN_SCORES + 1
"""Fewest good images of a product: one to fit, the others to calibrate."""

ROUTER_FOLDS = 10
"""Folds for the router's distances, the usual number (Kohavi 1995)."""


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of a task's good images: those that the final expert is fitted to, and the folds that are scored.

    A single fold is held out of the fit and scored by the final expert; several are cross-fitted.
    """

    fit: tuple[int, ...]
    folds: tuple[tuple[int, ...], ...]

    @property
    def is_cross_fitted(self) -> bool:
        """Whether the folds are scored by temporary experts."""
        return len(self.folds) > 1


def split(name: str, count: int, training: TrainingConfig) -> Split:
    """Split ``count`` good images of the product ``name``, with the task's own seed.

    Raises:
        DatasetError: too few of them.
    """
    if count < MIN_IMAGES:
        raise DatasetError(
            f"product {name!r} has {count} good image{'s' * (count != 1)}; at least {MIN_IMAGES} are needed, 30 or "
            "more are better."
        )
    generator = torch.Generator().manual_seed(task_seed(training.seed, name, "held out"))
    order = torch.randperm(count, generator=generator).tolist()
    if training.folds > 1 and count < training.cross_fit_below:
        number = min(training.folds, count)
        return Split(tuple(range(count)), tuple(tuple(sorted(order[k::number])) for k in range(number)))
    wanted = max(round(training.held_out_fraction * count), min(training.min_held_out, count // 3), MIN_SCORES)
    wanted = min(wanted, count - 1)
    return Split(tuple(sorted(order[wanted:])), (tuple(sorted(order[:wanted])),))


class HeldOutScores(BaseModel):
    """Image scores of held-out images, maxima of their pixel maps, and background NLLs, in nats."""

    model_config = ConfigDict(extra="forbid")

    scores: list[float] = []
    peaks: list[float] = []
    grounds: list[float] = []

    def add(self, other: "HeldOutScores") -> None:
        """Append the values of further images."""
        self.scores += other.scores
        self.peaks += other.peaks
        self.grounds += other.grounds


class FoldScores(BaseModel):
    """The scores of the first ``done`` folds of the task that ``fingerprint`` identifies."""

    fingerprint: str
    done: int = 0
    held_out: HeldOutScores = HeldOutScores()


def cross_fit(
    name: str,
    store: Embeddings,
    folds: tuple[tuple[int, ...], ...],
    make_trainer: Callable[[str, Base], TaskTrainer],
    shared_base: Base,
    config: ModelConfig,
    fitting: ResumableFit,
    known: FoldScores,
    keep: Callable[[FoldScores], None],
) -> HeldOutScores:
    """Score every fold with a temporary expert that is fitted to the others, except those ``known`` already.

    ``make_trainer(name, base)`` makes the trainer of a fold, seeded by its name. ``shared_base`` is never changed: a
    task that learns the base learns a copy in every fold. ``keep`` is called after every fold with all scores so far.
    """
    for number, fold in enumerate(folds[known.done :], start=known.done + 1):
        others = sorted({*range(len(store))} - {*fold})
        trainer = make_trainer(f"{name}, fold {number} of {len(folds)}", copy.deepcopy(shared_base))
        state = hashlib.sha256(f"{known.fingerprint}|fold {number}".encode()).hexdigest()
        fitting.run(trainer, store.subset(others), state)
        known.held_out.add(score_held_out(trainer, store.subset(fold), config))
        known.done = number
        keep(known)
    return known.held_out


def score_held_out(trainer: TaskTrainer, store: Embeddings, config: ModelConfig) -> HeldOutScores:
    """Score images with a fitted expert, computed as in prediction."""
    expert = MergedExpert(trainer.base, trainer.expert, matmul_dtype(trainer.precision))
    side = config.backbone.image_size
    found = HeldOutScores()
    with torch.inference_mode(), autocast(trainer.device, trainer.precision):
        for indices in torch.arange(len(store)).split(8):
            nll = expert(store.batch(indices, trainer.device))
            found.scores += image_score(nll, config.score_top_k).tolist()
            for each in nll.cpu().numpy():
                found.peaks.append(float(pixel_map(each, side, side, side).max()))
                found.grounds.append(background_nll(each))
    return found


def cross_fitted_distances(descriptors: torch.Tensor, config: RouterConfig) -> torch.Tensor:
    """Distances ``(n,)`` of descriptors ``(n, D)``, each to a prototype that was fitted without it."""
    count = len(descriptors)
    folds = min(ROUTER_FOLDS, count)
    number = torch.arange(count) % folds
    distances = torch.empty(count)
    for fold in range(folds):
        prototype = Prototype.fit(descriptors[number != fold], config)
        distances[number == fold] = Router([prototype])(descriptors[number == fold])[0][:, 0]
    return distances
