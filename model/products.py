"""The learned products on a device: from the features of an image to its product, and to a result."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.scorer import PatchMaps, image_scores
from moleflow.model.routing.novelty import background_nll, check_limit, novelty_score
from moleflow.model.routing.router import Router, image_descriptor
from moleflow.model.routing.shortlist import Route, Shortlist, shortlist
from moleflow.model.runtime.kernels import can_run_kernels
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.experts import Experts, MergedExperts, Merger, can_stack
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, check_rate
from moleflow.model.verdict.results import Candidate, Failure, Finding, Prediction, Refusal, TaskInfo

__all__ = ["MAX_EXPERTS", "Products"]

MAX_EXPERTS = 32
"""Merged experts kept on the device (LRU). One expert of the ``main`` preset takes 60 MB in float32."""

RowOf = Callable[[int, int], int]
"""The row of the features that an image has, given its number and the index of the product that sees it."""


class _Scored(NamedTuple):
    """The numbers of an expert for one image: its anomaly map ``(H, W)``, image score, and background NLL."""

    grid_map: np.ndarray
    score: float
    background: float


class Products:
    """The router, the experts and the calibrations of a checkpoint. Thread-safe; call it in inference mode.

    Args:
        checkpoint: an open checkpoint; experts are read from it on first use.
        device, precision: resolved (``moleflow.model.runtime.device``).
        max_experts, false_alarm_rate, unknown_limit: see ``Detector``.
        top_k: patches whose mean is the image score; the checkpoint's by default.
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
    ) -> None:
        self.false_alarm_rate, self.unknown_limit = check_rate(false_alarm_rate), check_limit(unknown_limit)
        header = checkpoint.header
        self._config, self._top_k = header.config, top_k or header.config.score_top_k
        profiles = [checkpoint.profile(task.index) for task in header.tasks]
        self._router = Router([each.prototype for each in profiles]).to(device)
        self._calibrations = [each.calibration for each in profiles]
        self._median_distances = torch.tensor([each.distances.median for each in self._calibrations], device=device)
        self.infos = tuple(self._at_rate(info) for info in header.tasks)
        self.experts = _experts(checkpoint, device, precision, max_experts)

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
        refuses = refuse_unknown and self.unknown_limit > 0
        chosen = [
            None if refuses and found.named is None and found.least_ratio > self.unknown_limit else found.task.index
            for found in routed
        ]
        tasks = [task for task in chosen if task is not None]
        rows = [row_of(number, task) for number, task in enumerate(chosen) if task is not None]
        maps, failed = self.experts.maps(features.chosen(rows), tasks)
        scored = self._scored(maps)
        results: list[Finding | Failure] = []
        for found, task in zip(routed, chosen, strict=True):
            numbers = None if task is None else next(scored)
            try:
                results.append(self._finding(found, numbers, failed, refuses=refuses))
            except PredictionError as error:
                if not refuse_unknown:
                    raise
                results.append(Failure(error.with_traceback(None)))  # frames would keep the batch's tensors alive
        return results

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
            self._prediction(routed[number], route, found)
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

    def _scored(self, maps: PatchMaps) -> Iterator[_Scored]:
        """The maps and scores of each image, on the host."""
        scores = image_scores(maps, self._config.scoring, self._top_k).tolist()
        nll = maps.nll.cpu().numpy()
        anomaly = nll if maps.anomaly is maps.nll else maps.anomaly.cpu().numpy()
        return map(_Scored, anomaly, scores, background_nll(nll).tolist())

    def _finding(
        self, found: Shortlist, scored: _Scored | None, failed: Mapping[int, ExpertError], *, refuses: bool
    ) -> Finding:
        """The result for one image. ``scored`` is ``None`` if the router refused it already.

        Raises:
            PredictionError: distances or scores are not finite, or the image's expert is in ``failed``.
        """
        if not all(map(math.isfinite, (found.least_ratio, *(route.distance for route in found.nearest)))):
            raise PredictionError(
                "The image's distances to the learned products are not finite: the backbone or a prototype is damaged. "
                "Restore the checkpoint from a backup; if the error persists, use precision fp32."
            )
        if scored is None:
            return self._refusal(found, found.least_ratio)
        if found.task.index in failed:
            error = failed[found.task.index]
            raise ExpertError(error.task, error.reason)  # a fresh one per image: raising sets its traceback
        result = self._prediction(found, found.task, scored)
        refused = refuses and found.named is None and result.is_unknown
        return self._refusal(found, result.novelty_score) if refused else result

    def _prediction(self, found: Shortlist, task: Route, scored: _Scored) -> Prediction:
        """The result of the expert of ``task``. Raises ``ExpertError`` if its scores are not finite."""
        novelty, calibration = found.least_ratio, self._calibrations[task.index]
        if task.index == found.nearest[0].index:  # the ratio belongs to the nearest product; so must the background
            dim = self._config.backbone.embedding_dim
            novelty = novelty_score(novelty, scored.background, calibration.grounds.median, dim)
        candidates = self._candidates(found)
        own = [each for each in candidates if each.index == task.index]
        return Prediction(
            candidates=candidates,
            novelty_score=novelty,
            task=own[0] if own else self._candidate(task),
            score=scored.score,
            grid_map=scored.grid_map,
            model_size=self._config.backbone.image_size,
            calibration=calibration,
            false_alarm_rate=self.false_alarm_rate,
            is_unknown=novelty > self.unknown_limit > 0,
        )

    def _refusal(self, found: Shortlist, novelty: float) -> Refusal:
        return Refusal(self._candidates(found), novelty_score=novelty, false_alarm_rate=self.false_alarm_rate)

    def _candidates(self, found: Shortlist) -> tuple[Candidate, ...]:
        return tuple(map(self._candidate, found.nearest))

    def _candidate(self, route: Route) -> Candidate:
        p_value = self._calibrations[route.index].distances.p_value(route.distance)
        return Candidate(self.infos[route.index].name, route.index, route.distance, p_value, route.ratio)

    def _at_rate(self, info: TaskInfo) -> TaskInfo:
        rate, calibration = self.false_alarm_rate, self._calibrations[info.index]
        return info.model_copy(
            update={
                "false_alarm_rate": rate,
                "threshold": calibration.scores.threshold(rate),
                "pixel_threshold": calibration.peaks.threshold(rate),
            }
        )


def _experts(checkpoint: Checkpoint, device: torch.device, precision: str, limit: int) -> Experts:
    """The experts of a checkpoint: stacked on a GPU that runs the kernels for it, else each by itself."""
    config, merge = checkpoint.header.config, Merger(checkpoint, device, precision)
    if can_run_kernels(device) and can_stack(config, merge.base, precision):
        from moleflow.model.store.stacked_experts import StackedExperts  # needs Triton

        return StackedExperts(merge, config, device, min(limit, len(checkpoint.header.tasks)))
    return MergedExperts(merge, config, device, precision, limit)
