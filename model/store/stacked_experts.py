"""A checkpoint's experts on a GPU, stacked: a batch of any products is one recorded graph of launches."""

import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Self

import torch

from moleflow.model.config import ModelConfig
from moleflow.model.errors import ExpertError
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.scorer import PatchMaps, ProductScorer
from moleflow.model.memory.stacked import StackedScorer
from moleflow.model.runtime.graphs import Captured
from moleflow.model.runtime.lru import ExpertCache
from moleflow.model.store.experts import empty_maps, found_or_failed

__all__ = ["StackedExperts"]


class StackedExperts:
    """Experts in slots of common tensors, at most ``limit`` of them. Thread-safe.

    A graph reads all slots, so that an expert is exchanged without recording anew. The lock is held until a batch is
    launched: from then on, the order on the device keeps weights and batches apart.
    """

    def __init__(
        self, merge: Callable[[int], ProductScorer], config: ModelConfig, device: torch.device, limit: int
    ) -> None:
        self.limit = limit
        self._merge, self._config, self._device = merge, config, device
        self._lock = threading.Lock()
        self._free = list(range(limit))
        # Without a reference to itself, the device's memory is free as soon as the last user is gone.
        place = weakref.WeakMethod(self._place)
        self._cache = ExpertCache(lambda index: place()(index), limit, drop=self._free.append)  # type: ignore[misc]
        self._scorer: StackedScorer | None = None
        self._score: Captured | None = None

    def prepare(self, tasks: Sequence[int]) -> dict[int, ExpertError]:
        """As ``Experts``."""
        with self._lock:
            return found_or_failed(self._cache.get, tasks)[1]

    def held(self) -> Collection[int]:
        """As ``Experts``."""
        return self._cache.held().keys()

    def take_over(self, others: Self, same: Mapping[int, int]) -> None:
        """As ``Experts``; they are merged again, since slots belong to one stack."""
        held = set(list(others.held())[-self.limit :])
        self.prepare([index for index, old in same.items() if old in held])

    def clear(self) -> None:
        """As ``Experts``; frees the recorded graphs too."""
        with self._lock:
            self._cache.clear()
            self._scorer = self._score = None

    def maps(self, features: PatchFeatures, tasks: Sequence[int]) -> tuple[PatchMaps, dict[int, ExpertError]]:
        """As ``Experts``."""
        maps = empty_maps(features, caps=self._config.scoring.cap is not None)
        failed: dict[int, ExpertError] = {}
        needed = sorted(set(tasks))
        for start in range(0, len(needed), self.limit):
            with self._lock:
                slots, damaged = found_or_failed(self._cache.get, needed[start : start + self.limit])
                failed |= damaged
                # Images of one product beside each other: few tiles then belong to two products.
                chosen = sorted((slots[task], row) for row, task in enumerate(tasks) if task in slots)
                if not chosen:
                    continue
                assert self._score is not None  # an expert was placed
                table = torch.tensor(chosen, dtype=torch.int32).to(self._device, non_blocking=True)
                rows = table[:, 1].long()
                part = features.rows(rows)
                found = self._score(part.embeddings, table[:, 0].contiguous(), *part.stages)
            maps.nll[rows], maps.anomaly[rows] = found[0], found[-1]
        return maps, failed

    def _place(self, index: int) -> int:
        """Merge an expert and copy it to a free slot. Raises ``ExpertError`` if its section is damaged."""
        product = self._merge(index)
        if self._scorer is None:
            self._scorer = StackedScorer(product, self._config.scoring.memory, self.limit)
            self._score = Captured(self._scorer, self._device)
        slot = self._free.pop()
        self._scorer.put(slot, product)
        return slot
