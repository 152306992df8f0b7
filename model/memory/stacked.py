"""The memories and fusions of several products side by side on a GPU, as ``moleflow.model.flow.stacked`` has flows."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from moleflow.model.config import MemoryConfig
from moleflow.model.flow.stacked import StackedFlow
from moleflow.model.memory.bank import MergedBank, pool_patches, upsampled
from moleflow.model.memory.fusion import Fusion, fuse
from moleflow.model.memory.scorer import ProductScorer
from moleflow.model.runtime.fused import FusedLinear

__all__ = ["StackedScorer"]

_AT_ONCE = 8
"""Images whose patches are compared at once: their distances to all prototypes take 100 MB."""


class StackedScorer:
    """Features and slots to maps, as ``ProductScorer`` computes them for one product.

    Args:
        like: a scorer of the kind that ``put`` will get.
        memory: the configuration of its memory, if it has one.
        slots: how many products there is room for.
    """

    def __init__(self, like: ProductScorer, memory: MemoryConfig | None, slots: int) -> None:
        self._flow = StackedFlow(like.flow, slots)
        self._banks = None if like.bank is None or memory is None else StackedBanks(like.bank, memory, slots)
        kinds = 0 if memory is None else 1 + bool(memory.pooled)
        self._fusions = None if like.fusion is None else StackedFusions(like.fusion, kinds, slots)

    def put(self, slot: int, product: ProductScorer) -> None:
        """Copy ``product`` to ``slot``; asynchronous."""
        self._flow.put(slot, product.flow)
        if self._banks is not None and product.bank is not None:
            self._banks.put(slot, product.bank)
        if self._fusions is not None and product.fusion is not None:
            self._fusions.put(slot, product.fusion)

    def __call__(
        self, embeddings: torch.Tensor, slots: torch.Tensor, *stages: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Embeddings ``(B, H, W, D)``, slots ``(B,)`` int32 and stages to the NLL and, where it differs, the anomaly
        map, each ``(B, H, W)`` float32."""
        nll = self._flow(embeddings, slots)
        if self._fusions is None:
            return (nll,)
        wide = slots.long()
        distances = None if self._banks is None else self._banks(stages, wide)
        return nll, self._fusions(nll, distances, wide)


class StackedBanks:
    """Pooled stages and the slot of each image to distances, as ``MergedBank`` computes them."""

    def __init__(self, like: MergedBank, config: MemoryConfig, slots: int) -> None:
        channels, dim = like.axes.shape
        self._axes = like.axes.new_zeros(slots, channels, dim)
        self._offsets = like.axes.new_zeros(slots, 1, 1, dim)
        self._near = _StackedNearest(like.axes, config.prototypes, slots)
        self._near_pooled = _StackedNearest(like.axes, config.pooled, slots) if config.pooled else None

    def put(self, slot: int, bank: MergedBank) -> None:
        """Copy ``bank`` to ``slot``."""
        self._axes[slot].copy_(bank.axes)
        self._offsets[slot].copy_(bank.mean @ bank.axes)
        self._near.put(slot, bank.near.compare)
        if self._near_pooled is not None:
            self._near_pooled.put(slot, None if bank.near_pooled is None else bank.near_pooled.compare)

    def __call__(self, stages: Sequence[torch.Tensor], slots: torch.Tensor) -> torch.Tensor:
        """Stages ``(B, H, W, C)``, finest first, to distances ``(B, kinds, H, W)`` float32."""
        parts = self._axes[slots].split([stage.shape[-1] for stage in stages], 1)
        grids = [
            torch.bmm(stage.float().flatten(1, 2), part).unflatten(1, stage.shape[1:3])
            for stage, part in zip(stages, parts, strict=True)
        ]
        patches = functools.reduce(torch.add, upsampled(grids)) - self._offsets[slots]
        distances = self._near(patches, slots)[:, None]
        if self._near_pooled is None:
            return distances
        coarse = self._near_pooled(pool_patches(patches), slots)[:, None]
        fine = F.interpolate(coarse, size=patches.shape[1:3], mode="bilinear", align_corners=False)
        return torch.cat((distances, fine), 1)


class _StackedNearest:
    """Patches ``(B, H, W, d)`` to the distance to the nearest prototype of each image's slot, ``(B, H, W)``."""

    def __init__(self, like: torch.Tensor, count: int, slots: int) -> None:
        self._weights, self._biases = like.new_zeros(slots, count, like.shape[1]), like.new_zeros(slots, 1, count)

    def put(self, slot: int, compare: FusedLinear | None) -> None:
        """Copy prototypes; ``None`` if the product has none of this kind, which then has no weight in its fusion."""
        weights, biases = self._weights[slot], self._biases[slot, 0]
        weights.zero_()
        biases.zero_()
        if compare is None or compare.bias is None:
            return
        count = len(compare.weight)
        weights[:count].copy_(compare.weight)
        biases[:count].copy_(compare.bias)
        biases[count:].fill_(torch.inf)  # room that is not needed is never the nearest

    def __call__(self, patches: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        flat = patches.flatten(1, 2)
        least = [
            torch.baddbmm(self._biases[own], part, self._weights[own].mT).amin(-1)
            for part, own in zip(flat.split(_AT_ONCE), slots.split(_AT_ONCE), strict=True)
        ]
        return (torch.cat(least) + flat.square().sum(-1)).clamp_min_(0).sqrt_().view(patches.shape[:3])


class StackedFusions:
    """NLL, distances and the slot of each image to the anomaly map, as ``Fusion`` computes it."""

    def __init__(self, like: Fusion, kinds: int, slots: int) -> None:
        self._constants, self._kinds = like.constants, kinds
        device = like.flow_mean.device
        self._flow = torch.zeros(2, slots, 1, 1, device=device)
        self._memory = torch.zeros(3, slots, kinds, 1, 1, device=device)

    def put(self, slot: int, fusion: Fusion) -> None:
        """Copy the statistics of ``fusion`` to ``slot``."""
        for own, given in zip(self._flow, (fusion.flow_mean, fusion.flow_deviation), strict=True):
            own[slot].copy_(given.view(1, 1))
        if self._kinds:
            mean, deviation, gate = self._memory[:, slot]
            for own, given, otherwise in (
                (mean, fusion.memory_mean, 0.0),
                (deviation, fusion.memory_deviation, 1.0),
                (gate, fusion.gate, 0.0),
            ):
                own.fill_(otherwise)
                own[: len(given)].copy_(given.view(-1, 1, 1))

    def __call__(self, nll: torch.Tensor, distances: torch.Tensor | None, slots: torch.Tensor) -> torch.Tensor:
        """NLL ``(B, H, W)`` and distances ``(B, kinds, H, W)`` to the anomaly map ``(B, H, W)``."""
        flow, memory = self._flow[:, slots].unbind(), self._memory[:, slots].unbind()
        return fuse(nll, distances, flow, memory, self._constants)
