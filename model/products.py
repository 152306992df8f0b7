"""The learned products on a device: from the features of an image to its product, and to a result."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

import torch

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.findings import Findings, Scored
from moleflow.model.memory.scorer import PatchMaps, ProductScorer, Scorer, image_scores
from moleflow.model.routing.novelty import background_nll
from moleflow.model.routing.router import Router, image_descriptor
from moleflow.model.routing.routes import Shortlist
from moleflow.model.routing.shortlist import shortlist
from moleflow.model.runtime.device import matmul_dtype
from moleflow.model.runtime.kernels import can_run_kernels
from moleflow.model.runtime.lru import MAX_EXPERTS
from moleflow.model.store.checkpoint import Checkpoint, Header
from moleflow.model.store.experts import Experts, MakeScorer, MergedExperts, Merger, can_stack
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE
from moleflow.model.verdict.results import Failure, Finding, Prediction, TaskInfo

__all__ = ["Products"]

RowOf = Callable[[int, int], int]
"""The row of the features that an image has, given its number and the index of the product that sees it."""


class Products:
    """The router, the experts and the calibrations of a checkpoint. Thread-safe; call it in inference mode.

    Args:
        checkpoint: an open checkpoint; experts are read from it on first use.
        device, precision: resolved (``moleflow.model.runtime.device``).
        max_experts, false_alarm_rate, unknown_limit: see ``Detector``.
        top_k: patches whose mean is the image score; the checkpoint's by default.
        scorer: makes what computes the maps of a product; PyTorch's by default.
        previous: those of another checkpoint on the same device in the same precision, whose merged experts are taken
            over where they are the same.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: str,
        *,
        max_experts: int = MAX_EXPERTS,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
        top_k: int | None = None,
        scorer: MakeScorer[Scorer] | None = None,
        previous: Self | None = None,
    ) -> None:
        header = checkpoint.header
        self._config, self._top_k = header.config, top_k or header.config.score_top_k
        profiles = [checkpoint.profile(task.index) for task in header.visible]
        self._router = Router([each.prototype for each in profiles]).to(device)
        self.findings = Findings(
            header.config,
            [task.model_copy(update={"index": place}) for place, task in enumerate(header.visible)],
            [each.calibration for each in profiles],
            top_k=self._top_k,
            false_alarm_rate=false_alarm_rate,
            unknown_limit=unknown_limit,
        )
        self._median_distances = torch.from_numpy(self.findings.median_distances).to(device)
        self.experts = _experts(checkpoint, device, precision, max_experts, scorer)
        self._header = header
        if previous is not None and type(previous.experts) is type(self.experts):
            self.experts.take_over(previous.experts, _same_experts(header, previous._header))

    @property
    def infos(self) -> tuple[TaskInfo, ...]:
        """The products, with thresholds at the false-alarm rate."""
        return self.findings.infos

    def route(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and distance ratios ``(B, T)`` of embeddings ``(B, H, W, D)``. Asynchronous on CUDA."""
        return self._router(image_descriptor(embeddings))

    def shortlist(self, distances: torch.Tensor, ratios: torch.Tensor, named: Sequence[int | None]) -> list[Shortlist]:
        """The nearest products of each image; the only device synchronisation before scoring."""
        return shortlist(distances, ratios, self._median_distances, named)

    def find(
        self, features: PatchFeatures, routed: Sequence[Shortlist], row_of: RowOf, *, refuse_unknown: bool
    ) -> list[Finding | Failure]:
        """The result for each image; see ``Detector.predict``."""
        chosen = self.findings.chosen(routed, refuse_unknown=refuse_unknown)
        tasks = [task for task in chosen if task is not None]
        rows = [row_of(number, task) for number, task in enumerate(chosen) if task is not None]
        maps, failed = self.experts.maps(features.chosen(rows), tasks)
        return self.findings.results(routed, chosen, self._scored(maps), failed, refuse_unknown=refuse_unknown)

    def find_both(
        self, features: PatchFeatures, routed: Sequence[Shortlist], row_of: RowOf
    ) -> list[tuple[Prediction, Prediction]]:
        """Each image as routed, and by the product that is named; the same object where both are one product."""
        wrong = [number for number, found in enumerate(routed) if found.nearest[0] != found.task]
        numbers = [*range(len(routed)), *wrong]
        chosen = [*(found.nearest[0] for found in routed), *(routed[number].task for number in wrong)]
        rows = [row_of(number, route.index) for number, route in zip(numbers, chosen, strict=True)]
        scored = self._scored(self.maps(features.chosen(rows), [route.index for route in chosen]))
        results = [
            self.findings.prediction(routed[number], route, found)
            for number, route, found in zip(numbers, chosen, scored, strict=True)
        ]
        again = dict(zip(wrong, results[len(routed) :], strict=True))
        return [(result, again.get(number, result)) for number, result in enumerate(results[: len(routed)])]

    def maps(self, features: PatchFeatures, tasks: Sequence[int]) -> PatchMaps:
        """Features and the task of each image to patch maps; asynchronous on CUDA.

        Raises:
            ExpertError: the expert of one of the tasks is damaged.
        """
        maps, failed = self.experts.maps(features, tasks)
        for error in failed.values():
            raise error
        return maps

    def _scored(self, maps: PatchMaps) -> Iterator[Scored]:
        """The maps and scores of each image, on the host."""
        scores = image_scores(maps, self._config.scoring, self._top_k).tolist()
        nll = maps.nll.cpu().numpy()
        anomaly = nll if maps.anomaly is maps.nll else maps.anomaly.cpu().numpy()
        scored = nll if self._config.scoring.memory is None else anomaly
        return map(Scored, anomaly, scores, background_nll(nll).tolist(), scored)


def _same_experts(header: Header, other: Header) -> dict[int, int]:
    """The products whose merged experts are the same in both, by their numbers in ``header`` and ``other``."""
    if (header.config, header.base_sha256) != (other.config, other.base_sha256):
        return {}
    known = {task.sha256: place for place, task in enumerate(other.visible)}
    return {place: known[task.sha256] for place, task in enumerate(header.visible) if task.sha256 in known}


def _experts(
    checkpoint: Checkpoint, device: torch.device, precision: str, limit: int, scorer: MakeScorer[Scorer] | None = None
) -> Experts:
    """The experts of a checkpoint: stacked on a GPU that runs the kernels for it, else each by itself."""
    config = checkpoint.header.config
    if scorer is not None:
        return MergedExperts(Merger(checkpoint, device, scorer), config, device, precision, limit, by_image=False)
    merge = Merger(checkpoint, device, partial(ProductScorer, dtype=matmul_dtype(precision)))
    if can_run_kernels(device) and can_stack(config, merge.base, precision):
        from moleflow.model.store.stacked_experts import StackedExperts  # needs Triton

        return StackedExperts(merge, config, device, min(limit, len(checkpoint.header.visible)))
    return MergedExperts(merge, config, device, precision, limit, by_image=device.type == "cpu")
