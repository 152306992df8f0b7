"""From an image's distances and scores to its result: a prediction, a refusal, or an error."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.routing.novelty import novelty_score
from moleflow.model.routing.shortlist import Route, Shortlist
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.results import Candidate, Prediction, Refusal, TaskInfo

__all__ = ["Judge", "Scored"]


class Scored(NamedTuple):
    """The numbers of an expert for one image: its anomaly map ``(H, W)``, image score, and background NLL."""

    grid_map: np.ndarray
    score: float
    background: float


class Judge:
    """Turns the numbers of one image into a result, by the calibrations of the learned products.

    Args:
        tasks, calibrations: the learned products, in training order.
        false_alarm_rate, unknown_limit: see ``Detector``.
        model_size: side of the model's input, in pixels.
        dim: embedding dimension.
    """

    def __init__(
        self,
        tasks: Sequence[TaskInfo],
        calibrations: Sequence[TaskCalibration],
        *,
        false_alarm_rate: float,
        unknown_limit: float,
        model_size: int,
        dim: int,
    ) -> None:
        self._tasks, self._calibrations = tasks, calibrations
        self._rate, self._limit = false_alarm_rate, unknown_limit
        self._model_size, self._dim = model_size, dim

    def find(
        self,
        found: Shortlist,
        scored: Scored | None,
        failed: Mapping[int, ExpertError],
        *,
        refuses: bool,
    ) -> Prediction | Refusal:
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

    def prediction(self, found: Shortlist, task: Route, scored: Scored) -> Prediction:
        """The result of the expert of ``task``. Raises ``ExpertError`` if its scores are not finite."""
        novelty, calibration = found.least_ratio, self._calibrations[task.index]
        if task.index == found.nearest[0].index:  # the ratio belongs to the nearest product; so must the background
            novelty = novelty_score(novelty, scored.background, calibration.grounds.median, self._dim)
        return Prediction(
            candidates=self._candidates(found),
            novelty_score=novelty,
            task=self._candidate(task),
            score=scored.score,
            grid_map=scored.grid_map,
            model_size=self._model_size,
            calibration=calibration,
            false_alarm_rate=self._rate,
            is_unknown=novelty > self._limit > 0,
        )

    def _refusal(self, found: Shortlist, novelty: float) -> Refusal:
        return Refusal(self._candidates(found), novelty_score=novelty, false_alarm_rate=self._rate)

    def _candidate(self, route: Route) -> Candidate:
        p_value = self._calibrations[route.index].distances.p_value(route.distance)
        return Candidate(self._tasks[route.index].name, route.index, route.distance, p_value, route.ratio)

    def _candidates(self, found: Shortlist) -> tuple[Candidate, ...]:
        return tuple(map(self._candidate, found.nearest))
