"""A checkpoint's experts on a device: loaded and merged on demand, a bounded number kept.

An expert that cannot be loaded fails the images of its product, and no others of their batch.
"""

from collections.abc import Mapping, Sequence

import torch

from moleflow.model.errors import CheckpointError, ExpertError, one_line
from moleflow.model.flow.merged import MergedExpert
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
        self._cache = ExpertCache(self._merge, limit)

    def get(self, index: int) -> MergedExpert:
        """The expert of the task at ``index``. Raises ``ExpertError`` if its section of the checkpoint is damaged."""
        return self._cache.get(index)

    def prepare(self, tasks: Sequence[int]) -> dict[int, ExpertError]:
        """Load and merge the experts of ``tasks`` now; returns the errors of damaged ones."""
        failed: dict[int, ExpertError] = {}
        for index in tasks:
            try:
                self.get(index)
            except ExpertError as error:
                failed[index] = ExpertError(error.task, error.reason)
        return failed

    def clear(self) -> None:
        """Free all merged experts; they are loaded again on demand."""
        self._cache.clear()

    def maps(self, embeddings: torch.Tensor, tasks: Sequence[int]) -> tuple[torch.Tensor, dict[int, ExpertError]]:
        """Embeddings ``(B, H, W, D)`` and the task of each image to patch maps ``(B, H, W)``, without synchronising.

        Also returns the errors of tasks with damaged experts, whose maps are NaN.
        """
        maps = embeddings.new_full(embeddings.shape[:3], torch.nan, dtype=torch.float32)
        failed: dict[int, ExpertError] = {}
        needed = sorted(set(tasks))
        for start in range(0, len(needed), self.limit):
            # Loading and merging stays on this thread: the number of threads may change the last digits.
            experts: dict[int, MergedExpert] = {}
            for index in needed[start : start + self.limit]:
                try:
                    experts[index] = self.get(index)
                except ExpertError as error:
                    failed[index] = ExpertError(error.task, error.reason)  # a fresh one: no traceback
            with autocast(self._device, self._precision):
                self._fill(maps, embeddings, tasks, experts)
        return maps, failed

    def _fill(
        self,
        maps: torch.Tensor,
        embeddings: torch.Tensor,
        tasks: Sequence[int],
        experts: Mapping[int, MergedExpert],
    ) -> None:
        """Compute the maps of all images whose task is in ``experts``; on a CPU in parallel across tasks."""
        if self._device.type == "cpu":
            chosen = [row for row, task in enumerate(tasks) if task in experts]
            found = parallel_map(lambda row: experts[tasks[row]](embeddings[row : row + 1]), chosen)
            for row, patch_map in zip(chosen, found, strict=True):
                maps[row : row + 1] = patch_map
            return
        for index, expert in experts.items():
            members = [row for row, task in enumerate(tasks) if task == index]
            if len(members) == len(tasks):
                maps.copy_(expert(embeddings))
            else:
                rows = torch.tensor(members).to(self._device, non_blocking=True)
                maps[rows] = expert(embeddings[rows])

    def _merge(self, index: int) -> MergedExpert:
        try:
            expert = self._checkpoint.expert(index)
            base = self._shared_base or self._checkpoint.base(index).to(self._device)
        except CheckpointError as error:
            reason = one_line(error)
            raise ExpertError(self._checkpoint.header.tasks[index].name, reason) from error
        return MergedExpert(base, expert.to(self._device), matmul_dtype(self._precision))
