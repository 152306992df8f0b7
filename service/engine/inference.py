"""One batch through the model, so that a failure costs only the images that cause it."""

import logging
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from moleflow.model.errors import ExpertError, PredictionError, describe
from moleflow.model.runtime.faults import is_out_of_memory
from moleflow.model.verdict.results import Failure, Finding
from moleflow.service.engine.predictor import Predictor
from moleflow.service.errors import NotReadyError

__all__ = ["Outcome", "judge", "self_test"]

Outcome = Finding | Exception
"""What came of one image: a finding, or the error that is its answer."""

_logger = logging.getLogger(__name__)


def judge(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    tasks: Sequence[str | None],
    *,
    on_failure: Callable[[BaseException, int], bool] = lambda error, count: True,
) -> list[Outcome]:
    """Judge a batch: images ``(S, S, 3)`` uint8, and the wanted expert of each (``None`` routes). Never raises.

    A batch that fails is halved, and so on, down to the images that fail alone: at most ``2n - 1`` calls of the model
    for ``n`` images. The same serves where memory is short. ``on_failure`` gets every failed call's error and its
    number of images; when it says no, what is left fails with that error.
    """
    outcomes: list[Outcome] = [RuntimeError("not judged")] * len(images)
    parts = [range(len(images))] if images else []
    while parts:
        part = parts.pop()
        try:
            findings = predictor.predict([images[row] for row in part], [tasks[row] for row in part])
            _check(findings, len(part))
        except BaseException as error:
            # Even SystemExit: whatever the model raises belongs to these images, and the next ones need the thread.
            goes_on = on_failure(error, len(part))
            _clear_frames(error)
            if not goes_on:
                for row in (row for rest in (part, *parts) for row in rest):
                    outcomes[row] = _failure(error)
                break
            if is_out_of_memory(error):
                _free_memory(predictor)
            if len(part) == 1:
                outcomes[part[0]] = _failure(error)
                continue
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]
        else:
            for row, finding in zip(part, findings, strict=True):
                outcomes[row] = finding.error if isinstance(finding, Failure) else finding
    return outcomes


def self_test(
    predictor: Predictor, task: str, *, on_failure: Callable[[BaseException, int], bool] = lambda error, count: True
) -> Outcome:
    """What comes of a blank image that is said to show the product ``task``. Never raises; ``on_failure`` as above."""
    size = predictor.preprocessing.image_size
    (outcome,) = judge(predictor, [np.zeros((size, size, 3), np.uint8)], [task], on_failure=on_failure)
    return outcome


def _check(findings: object, count: int) -> None:
    """Raise unless there is a finding for each of ``count`` images."""
    if not isinstance(findings, list) or len(findings) != count:
        given = f"{len(findings)} findings" if isinstance(findings, list) else type(findings).__name__
        raise PredictionError(f"the model returned {given} for {count} images; it is to return a list of one each")
    for finding in findings:
        if not isinstance(finding, Finding | Failure):
            raise PredictionError(f"the model returned a {type(finding).__name__} where a finding is due")


def _failure(cause: BaseException) -> Exception:
    """The answer to one image, which is not tied to its cause: that one's frames would keep the whole batch."""
    if is_out_of_memory(cause):
        return NotReadyError(
            "There is not enough memory to judge one image at this moment. Try again later, or end what else uses it."
        )
    if isinstance(cause, ExpertError):
        return ExpertError(cause.task, cause.reason)
    return PredictionError(f"The model failed on the image: {describe(cause)}")


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames hold: the batch, and the device's memory with it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _free_memory(predictor: Predictor) -> None:
    try:
        predictor.free_memory()
    except Exception as error:  # a device in trouble may refuse this too
        _logger.warning("No memory could be freed: %s", describe(error))
