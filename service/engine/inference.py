"""Running the model on one batch, so that a failure affects only the images that cause it."""

import logging
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from moleflow.model.errors import ExpertError, MoLEFlowError, PredictionError, describe
from moleflow.model.runtime.faults import is_out_of_memory
from moleflow.model.verdict.results import Failure, Finding
from moleflow.service.engine.predictor import Predictor
from moleflow.service.errors import NotReadyError

__all__ = ["Outcome", "SupersededError", "judge", "self_test"]

Outcome = Finding | Exception
"""The result for one image: a finding or an error."""


class SupersededError(MoLEFlowError):
    """The image was resized for another model than the one that serves now; decode it again."""


_logger = logging.getLogger(__name__)


def judge(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    tasks: Sequence[str | None],
    *,
    on_failure: Callable[[BaseException, int], bool] = lambda error, count: True,
) -> list[Outcome]:
    """Judge a batch: images ``(S, S, 3)`` uint8 and the product of each (``None`` to route). Never raises.

    A failing batch is halved recursively until only the images that fail alone are left: at most ``2n - 1`` model calls
    for ``n`` images. This also handles running out of memory. ``on_failure`` gets the error and the number of images of
    every failed call; if it returns false, all remaining images fail with that error.
    """
    outcomes: list[Outcome] = [RuntimeError("not processed")] * len(images)
    parts = [range(len(images))] if images else []
    while parts:
        part = parts.pop()
        try:
            findings = predictor.predict([images[row] for row in part], [tasks[row] for row in part])
            _check(findings, len(part))
        except BaseException as error:
            # Including SystemExit: the thread is needed for the next images.
            retry = on_failure(error, len(part))
            _clear_frames(error)
            if not retry:
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
    """The outcome for a blank image scored as ``task``. Never raises; ``on_failure`` as for ``judge``."""
    size = predictor.preprocessing.image_size
    (outcome,) = judge(predictor, [np.zeros((size, size, 3), np.uint8)], [task], on_failure=on_failure)
    return outcome


def _check(findings: object, count: int) -> None:
    """Raise unless there is a finding for each of ``count`` images."""
    if not isinstance(findings, list) or len(findings) != count:
        given = f"{len(findings)} findings" if isinstance(findings, list) else type(findings).__name__
        raise PredictionError(f"the model returned {given} for {count} images instead of a list with one each")
    for finding in findings:
        if not isinstance(finding, Finding | Failure):
            raise PredictionError(f"the model returned a {type(finding).__name__} instead of a finding")


def _failure(cause: BaseException) -> Exception:
    """The error for one image. It is not chained to its cause, whose frames would keep the batch alive."""
    if is_out_of_memory(cause):
        return NotReadyError(
            "There is not enough memory to process one image. Try again later, or stop other programs that use memory."
        )
    if isinstance(cause, ExpertError):
        return ExpertError(cause.task, cause.reason)
    return PredictionError(f"The model failed on the image: {describe(cause)}")


def _clear_frames(error: BaseException | None) -> None:
    """Release what an error's frames refer to: the batch, and with it device memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _free_memory(predictor: Predictor) -> None:
    try:
        predictor.free_memory()
    except Exception as error:  # a failing device may raise here too
        _logger.warning("Freeing memory failed: %s", describe(error))
