"""A checkpoint's experts on a device: loaded, merged with the base on demand, and a bounded number of them kept.

An expert that cannot be loaded fails the images of its product, and no others of their batch.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, Protocol, Self, TypeVar

import torch

from moleflow.model.config import ModelConfig
from moleflow.model.errors import CheckpointError, ExpertError, one_line
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.model.memory.scorer import PatchMaps, ProductParts, Scorer
from moleflow.model.runtime.device import autocast
from moleflow.model.runtime.lru import ExpertCache
from moleflow.model.runtime.parallel import parallel_map
from moleflow.model.store.checkpoint import Checkpoint

__all__ = ["Experts", "MakeScorer", "MergedExperts", "Merger", "can_stack", "empty_maps", "found_or_failed"]

LEAST_PATCHES = 128
"""Fewest patches of an image: at most two images meet in a tile of a matrix product."""

E = TypeVar("E")
S = TypeVar("S", bound=Scorer, covariant=True)

MakeScorer = Callable[[Base, ProductParts], S]
"""Makes what computes the maps of a product from the base and the product's parts, both on the device."""


class Experts(Protocol):
    """The experts of a checkpoint on a device, at most ``limit`` of them. Thread-safe."""

    limit: int

    def prepare(self, tasks: Sequence[int]) -> dict[int, ExpertError]:
        """Load and merge the experts of ``tasks`` now; returns the errors of damaged ones."""

    def held(self) -> Collection[int]:
        """The tasks whose experts are on the device, the one that was used last at the end."""

    def take_over(self, others: Self, same: Mapping[int, int]) -> None:
        """Have the experts that ``others`` holds ready; ``same`` maps tasks to those of ``others`` with equal experts.

        To be called before anything else. A damaged expert is left out.
        """

    def clear(self) -> None:
        """Free all merged experts; they are loaded again on demand."""

    def maps(self, features: PatchFeatures, tasks: Sequence[int]) -> tuple[PatchMaps, dict[int, ExpertError]]:
        """Features and the task of each image to patch maps, without synchronising.

        Also returns the errors of tasks with damaged experts, whose maps are NaN.
        """


class Merger(Generic[S]):
    """Reads the experts of a checkpoint and merges them with the base; ``base`` is that of all, if there is one.

    Products are numbered without the hidden ones.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, scorer: MakeScorer[S]) -> None:
        self._checkpoint, self._device, self._scorer = checkpoint, device, scorer
        self._tasks = checkpoint.header.visible
        separated = checkpoint.header.config.flow.sharing == "separated"
        self.base = None if separated else checkpoint.base().to(device)

    def __call__(self, index: int) -> S:
        """The expert of the task at ``index``. Raises ``ExpertError`` if its section of the checkpoint is damaged."""
        task = self._tasks[index]
        try:
            parts = self._checkpoint.product(task.index)
            base = self.base or self._checkpoint.base(task.index).to(self._device)
        except CheckpointError as error:
            reason = one_line(error)
            raise ExpertError(task.name, reason) from error
        return self._scorer(base, parts.to(self._device))


class MergedExperts:
    """Experts that each have a network of their own: on a CPU, and on a GPU where they cannot be stacked.

    With ``by_image``, the images of a batch are computed one by one in parallel.
    """

    def __init__(
        self,
        merge: Callable[[int], Scorer],
        config: ModelConfig,
        device: torch.device,
        precision: str,
        limit: int,
        *,
        by_image: bool,
    ) -> None:
        self.limit, self._by_image = limit, by_image
        self._device, self._precision = device, precision
        self._caps = config.scoring.cap is not None
        self._cache = ExpertCache(merge, limit)

    def get(self, index: int) -> Scorer:
        """The expert of the task at ``index``. Raises ``ExpertError`` if its section of the checkpoint is damaged."""
        return self._cache.get(index)

    def prepare(self, tasks: Sequence[int]) -> dict[int, ExpertError]:
        """As ``Experts``."""
        return self._load(tasks)[1]

    def held(self) -> Collection[int]:
        """As ``Experts``."""
        return self._cache.held().keys()

    def take_over(self, others: Self, same: Mapping[int, int]) -> None:
        """As ``Experts``; nothing is read, since a merged expert does not depend on its file any more."""
        new = {old: index for index, old in same.items()}
        for old, expert in list(others._cache.held().items())[-self.limit :]:
            if old in new:
                self._cache.put(new[old], expert)

    def clear(self) -> None:
        """As ``Experts``."""
        self._cache.clear()

    def maps(self, features: PatchFeatures, tasks: Sequence[int]) -> tuple[PatchMaps, dict[int, ExpertError]]:
        """As ``Experts``."""
        maps = empty_maps(features, caps=self._caps)
        failed: dict[int, ExpertError] = {}
        needed = sorted(set(tasks))
        for start in range(0, len(needed), self.limit):
            # Loading and merging stays on this thread: the number of threads may change the last digits.
            experts, damaged = self._load(needed[start : start + self.limit])
            failed |= damaged
            with autocast(self._device, self._precision):
                self._fill(maps, features, tasks, experts)
        return maps, failed

    def _load(self, tasks: Iterable[int]) -> tuple[dict[int, Scorer], dict[int, ExpertError]]:
        return found_or_failed(self.get, tasks)

    def _fill(
        self,
        maps: PatchMaps,
        features: PatchFeatures,
        tasks: Sequence[int],
        experts: Mapping[int, Scorer],
    ) -> None:
        """Compute the maps of all images whose task is in ``experts``."""
        if self._by_image:
            chosen = [row for row, task in enumerate(tasks) if task in experts]
            found = parallel_map(lambda row: experts[tasks[row]](features.rows(slice(row, row + 1))), chosen)
            for row, each in zip(chosen, found, strict=True):
                maps.nll[row : row + 1], maps.anomaly[row : row + 1] = each.nll, each.anomaly
            return
        for index, expert in experts.items():
            members = [row for row, task in enumerate(tasks) if task == index]
            rows = torch.tensor(members).to(self._device, non_blocking=True)
            own = expert(features if len(members) == len(tasks) else features.rows(rows))
            maps.nll[rows], maps.anomaly[rows] = own.nll, own.anomaly


def can_stack(config: ModelConfig, base: Base | None, precision: str) -> bool:
    """Whether ``StackedExperts`` computes what ``MergedExperts`` does: half precision, and one base for all, whose
    channel scales are 1."""
    side = config.backbone.image_size // min(config.backbone.strides)
    if base is None or precision == "fp32" or side**2 < LEAST_PATCHES or config.flow.adapter == "soft_ln":
        return False
    return not any(bool((block.channel_scale != 1).any()) for block in base.blocks)


def empty_maps(features: PatchFeatures, *, caps: bool) -> PatchMaps:
    """Maps of NaN, to be filled; the anomaly map is the NLL itself unless the scoring ``caps`` it."""
    nll = features.embeddings.new_full(features.embeddings.shape[:3], torch.nan, dtype=torch.float32)
    return PatchMaps(nll, nll.clone() if caps else nll)


def found_or_failed(get: Callable[[int], E], tasks: Iterable[int]) -> tuple[dict[int, E], dict[int, ExpertError]]:
    """What ``get`` has for each of ``tasks``, by index, and the errors of damaged experts."""
    experts, failed = {}, {}
    for index in tasks:
        try:
            experts[index] = get(index)
        except ExpertError as error:
            failed[index] = ExpertError(error.task, error.reason)  # a fresh one: no traceback
    return experts, failed
