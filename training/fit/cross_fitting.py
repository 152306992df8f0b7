"""Held-out maps for calibration: good images mapped by an expert and a memory that were not fitted to them.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel

from moleflow.model.config import RouterConfig
from moleflow.model.flow.expert import Base
from moleflow.model.routing.router import Prototype, Router
from moleflow.model.verdict.calibration import MIN_SCORES
from moleflow.training.config import TrainingConfig
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.errors import DatasetError
from moleflow.training.fit.held_out import HeldOutMaps, StoredMaps, map_held_out
from moleflow.training.fit.memory import FittedBank
from moleflow.training.fit.resume import ResumableFit
from moleflow.training.fit.trainer import TaskTrainer, task_seed

__all__ = [
    "MIN_IMAGES",
    "FoldMaps",
    "Split",
    "cross_fit",
    "cross_fitted_distances",
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


class FoldMaps(BaseModel):
    """The maps of the first folds of the task that ``fingerprint`` identifies: of each fold's images, then of each of
    their altered copies."""

    fingerprint: str
    folds: list[list[StoredMaps]] = []


def cross_fit(
    name: str,
    stores: Sequence[Embeddings],
    folds: tuple[tuple[int, ...], ...],
    make_trainer: Callable[[str, Base], TaskTrainer],
    memory: FittedBank | None,
    shared_base: Base,
    fitting: ResumableFit,
    known: FoldMaps,
    keep: Callable[[FoldMaps], None],
) -> list[HeldOutMaps]:
    """Map every fold with a temporary expert that is fitted to the others, and with the ``memory`` of all images less
    the fold's own; except those ``known`` already.

    ``stores`` are the images, and any altered copies of them in the same order, which are mapped but not fitted to; the
    maps of each are returned, fold after fold.

    ``make_trainer(name, base)`` makes a fold's, seeded by its name. ``shared_base`` is never changed: a task that
    learns the base learns a copy in every fold. ``keep`` is called after every fold with all maps so far.
    """
    for number, fold in enumerate(folds[len(known.folds) :], start=len(known.folds) + 1):
        others = stores[0].subset(sorted({*range(len(stores[0]))} - {*fold}))
        fold_name = f"{name}, fold {number} of {len(folds)}"
        trainer = make_trainer(fold_name, copy.deepcopy(shared_base))
        state = hashlib.sha256(f"{known.fingerprint}|fold {number}".encode()).hexdigest()
        fitting.run(trainer, others, state)
        bank = None if memory is None else memory.without(fold)
        known.folds.append([StoredMaps.of(map_held_out(trainer, bank, store.subset(fold))) for store in stores])
        keep(known)
    return [HeldOutMaps.joined([maps.maps() for maps in kind]) for kind in zip(*known.folds, strict=True)]


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
