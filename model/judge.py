"""From the numbers of one image to what is said about it: a prediction, a refusal, or that there is no verdict."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.routing.novelty import background_nll, novelty_score
from moleflow.model.routing.shortlist import Route, Shortlist
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.results import Candidate, Prediction, Refusal, TaskInfo

__all__ = ["Judge"]


class Judge:
    """What is known of the learned products, to hold an image's numbers against.

    Args:
        tasks, calibrations: the learned products, in order.
        false_alarm_rate, unknown_limit: as the ``Detector``'s.
        model_size: side of the model's input, in pixels.
        dim: values in an embedding.
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
        scored: tuple[np.ndarray, float] | None,
        failed: Mapping[int, ExpertError],
        *,
        refuses: bool,
    ) -> Prediction | Refusal:
        """What is said of one image. ``scored`` is its patch map and score, ``None`` if the router refused it already.

        Raises:
            PredictionError: nothing can be: numbers are not finite, or the image's expert is one of those that failed.
        """
        if not all(map(math.isfinite, (found.least_ratio, *(route.distance for route in found.nearest)))):
            raise PredictionError(
                "The image's distances to the learned products are not finite: the backbone or a prototype is damaged. "
                "Restore the checkpoint from a copy; if that was done, predict with the precision fp32."
            )
        if scored is None:
            return self._refusal(found, found.least_ratio)
        if found.task.index in failed:
            error = failed[found.task.index]
            raise ExpertError(error.task, error.reason)  # each image gets its own: raising an error writes to it
        result = self.prediction(found, found.task, *scored)
        refused = refuses and found.named is None and result.is_unknown
        return self._refusal(found, result.novelty_score) if refused else result

    def prediction(self, found: Shortlist, task: Route, grid_map: np.ndarray, score: float) -> Prediction:
        """What the expert of ``task`` says of an image. Raises ``ExpertError`` where that is not finite."""
        strange, calibration = found.least_ratio, self._calibrations[task.index]
        if task.index == found.nearest[0].index:  # another expert does not know what the least distance ratio is of
            strange = novelty_score(strange, background_nll(grid_map), calibration.grounds.median, self._dim)
        return Prediction(
            candidates=self._candidates(found),
            novelty_score=strange,
            task=self._candidate(task),
            score=score,
            grid_map=grid_map,
            model_size=self._model_size,
            calibration=calibration,
            false_alarm_rate=self._rate,
            is_unknown=strange > self._limit > 0,
        )

    def _refusal(self, found: Shortlist, strange: float) -> Refusal:
        return Refusal(self._candidates(found), novelty_score=strange, false_alarm_rate=self._rate)

    def _candidate(self, route: Route) -> Candidate:
        p_value = self._calibrations[route.index].distances.p_value(route.distance)
        return Candidate(self._tasks[route.index].name, route.index, route.distance, p_value, route.ratio)

    def _candidates(self, found: Shortlist) -> tuple[Candidate, ...]:
        """The nearest learned products with their distances and ratios."""
        return tuple(map(self._candidate, found.nearest))
