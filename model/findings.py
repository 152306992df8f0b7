"""From numbers to results: which product an image shows, and what its expert's scores mean. Without PyTorch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT, ModelConfig
from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.names import find_named
from moleflow.model.routing.novelty import check_limit, novelty_score
from moleflow.model.routing.routes import Route, Shortlist
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, TaskCalibration, check_rate
from moleflow.model.verdict.masking import cut_grid, inspected_score
from moleflow.model.verdict.results import Candidate, Failure, Finding, Prediction, Refusal, TaskInfo

__all__ = ["Findings", "Scored"]


class Scored(NamedTuple):
    """The numbers of an expert for one image: its anomaly map ``(H, W)``, image score and background NLL, and the map
    that the score is of, the same or the NLL. All are of the whole image."""

    grid_map: np.ndarray
    score: float
    background: float
    scored_map: np.ndarray


class Findings:
    """Makes results for the products of a checkpoint. Thread-safe.

    Args:
        config: of the model.
        tasks: the records of the products, as they are stored.
        calibrations: of each of them.
        top_k: patches whose mean is the image score; the configuration's by default.
        false_alarm_rate, unknown_limit: see ``Detector``.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[TaskInfo],
        calibrations: Sequence[TaskCalibration],
        *,
        top_k: int | None = None,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
    ) -> None:
        self.false_alarm_rate, self.unknown_limit = check_rate(false_alarm_rate), check_limit(unknown_limit)
        self._backbone, self._calibrations = config.backbone, tuple(calibrations)
        self._top_k = top_k or config.score_top_k
        areas = [task.inspected_area for task in tasks]
        self._inspected = [None if area is None else area.mask for area in areas]
        self.median_distances = np.array([each.distances.median for each in calibrations], np.float32)
        self.infos = tuple(map(self._at_rate, tasks))

    def named(self, images: Sequence[np.ndarray], tasks: Sequence[str | None]) -> list[int | None]:
        """The index of the product that is named for each image, or ``None``. Raises ``UnknownTaskError``."""
        if len(tasks) != len(images):
            raise ValueError(f"tasks must have one entry per image; got {len(tasks)} for {len(images)} images")
        indices = {name: find_named(name, self.infos).index for name in set(tasks) if name is not None}
        return [None if name is None else indices[name] for name in tasks]

    def good_scores(self, index: int) -> np.ndarray:
        """The scores of the good images that calibrate a product, ascending, ``(n,)`` float64."""
        return self._calibrations[index].scores.scores

    def chosen(self, routed: Sequence[Shortlist], *, refuse_unknown: bool) -> list[int | None]:
        """The product whose expert has to score each image; ``None`` for one that the router refuses."""
        refuses = refuse_unknown and self.unknown_limit > 0
        return [
            None if refuses and found.named is None and found.least_ratio > self.unknown_limit else found.task.index
            for found in routed
        ]

    def results(
        self,
        routed: Sequence[Shortlist],
        chosen: Sequence[int | None],
        scored: Iterator[Scored],
        failed: Mapping[int, ExpertError],
        *,
        refuse_unknown: bool,
    ) -> list[Finding | Failure]:
        """The result for each image; see ``Detector.predict``.

        ``scored`` has the numbers of each image whose ``chosen`` is not ``None``, ``failed`` the errors of damaged
        experts.
        """
        refuses = refuse_unknown and self.unknown_limit > 0
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

    def prediction(self, found: Shortlist, task: Route, scored: Scored) -> Prediction:
        """The result of the expert of ``task``. Raises ``ExpertError`` if its scores are not finite."""
        novelty, calibration = found.least_ratio, self._calibrations[task.index]
        if task.index == found.nearest[0].index:  # the ratio belongs to the nearest product; so must the background
            dim = self._backbone.embedding_dim
            novelty = novelty_score(novelty, scored.background, calibration.grounds.median, dim)
        grid_map, score, inspected = scored.grid_map, scored.score, self._inspected[task.index]
        if inspected is not None:
            self._check_grid(task.index, inspected.shape, grid_map.shape)
            score = inspected_score(scored.scored_map, inspected, self._top_k)
            grid_map = cut_grid(grid_map, inspected)
        candidates = self._candidates(found)
        own = [each for each in candidates if each.index == task.index]
        return Prediction(
            candidates=candidates,
            novelty_score=novelty,
            task=own[0] if own else self._candidate(task),
            score=score,
            grid_map=grid_map,
            model_size=self._backbone.image_size,
            calibration=calibration,
            false_alarm_rate=self.false_alarm_rate,
            is_unknown=novelty > self.unknown_limit > 0,
            inspected=inspected,
        )

    def _check_grid(self, index: int, kept: tuple[int, ...], found: tuple[int, ...]) -> None:
        if kept != found:
            raise ExpertError(
                self.infos[index].name,
                f"its inspected area has {kept[0]} × {kept[1]} patches, and its images {found[0]} × {found[1]}. Set "
                "the area again with `moleflow area`.",
            )

    def _finding(
        self, found: Shortlist, scored: Scored | None, failed: Mapping[int, ExpertError], *, refuses: bool
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
        result = self.prediction(found, found.task, scored)
        refused = refuses and found.named is None and result.is_unknown
        return self._refusal(found, result.novelty_score) if refused else result

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
