"""A checkpoint's experts on a device: loaded, merged with the base on demand, and a bounded number of them kept.

An expert that cannot be loaded fails the images of its product, and no others of their batch.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from moleflow.model.errors import CheckpointError, ExpertError, one_line
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.scorer import PatchMaps, ProductScorer
from moleflow.model.runtime.device import autocast, matmul_dtype
from moleflow.model.runtime.lru import ExpertCache
from moleflow.model.runtime.parallel import parallel_map
from moleflow.model.store.checkpoint import Checkpoint

__all__ = ["Experts"]


class Experts:
    """Merged experts by task index, at most ``limit`` of them on the device. Thread-safe."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: str, limit: int) -> None:
        self.limit = limit
        self._checkpoint, self._device, self._precision = checkpoint, device, precision
        separated = checkpoint.header.config.flow.sharing == "separated"
        self._shared_base = None if separated else checkpoint.base().to(device)
        self._caps = checkpoint.header.config.scoring.cap is not None
        self._cache = ExpertCache(self._merge, limit)

    def get(self, index: int) -> ProductScorer:
        """The expert of the task at ``index``. Raises ``ExpertError`` if its section of the checkpoint is damaged."""
        return self._cache.get(index)

    def prepare(self, tasks: Sequence[int]) -> dict[int, ExpertError]:
        """Load and merge the experts of ``tasks`` now; returns the errors of damaged ones."""
        return self._load(tasks)[1]

    def clear(self) -> None:
        """Free all merged experts; they are loaded again on demand."""
        self._cache.clear()

    def maps(self, features: PatchFeatures, tasks: Sequence[int]) -> tuple[PatchMaps, dict[int, ExpertError]]:
        """Features and the task of each image to patch maps, without synchronising.

        Also returns the errors of tasks with damaged experts, whose maps are NaN.
        """
        nll = features.embeddings.new_full(features.embeddings.shape[:3], torch.nan, dtype=torch.float32)
        maps = PatchMaps(nll, nll.clone() if self._caps else nll)
        failed: dict[int, ExpertError] = {}
        needed = sorted(set(tasks))
        for start in range(0, len(needed), self.limit):
            # Loading and merging stays on this thread: the number of threads may change the last digits.
            experts, damaged = self._load(needed[start : start + self.limit])
            failed |= damaged
            with autocast(self._device, self._precision):
                self._fill(maps, features, tasks, experts)
        return maps, failed

    def _load(self, tasks: Iterable[int]) -> tuple[dict[int, ProductScorer], dict[int, ExpertError]]:
        """The experts of ``tasks`` by index, and the errors of damaged ones."""
        experts, failed = {}, {}
        for index in tasks:
            try:
                experts[index] = self.get(index)
            except ExpertError as error:
                failed[index] = ExpertError(error.task, error.reason)  # a fresh one: no traceback
        return experts, failed

    def _fill(
        self,
        maps: PatchMaps,
        features: PatchFeatures,
        tasks: Sequence[int],
        experts: Mapping[int, ProductScorer],
    ) -> None:
        """Compute the maps of all images whose task is in ``experts``; on a CPU in parallel across tasks."""
        if self._device.type == "cpu":
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

    def _merge(self, index: int) -> ProductScorer:
        try:
            parts = self._checkpoint.product(index)
            base = self._shared_base or self._checkpoint.base(index).to(self._device)
        except CheckpointError as error:
            reason = one_line(error)
            raise ExpertError(self._checkpoint.header.tasks[index].name, reason) from error
        return ProductScorer(base, parts.to(self._device), matmul_dtype(self._precision))
