"""Inference on a batch: a failure affects only the images that cause it."""

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from dummy import DummyDetector

from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.verdict.results import Failure, Finding, Prediction
from moleflow.service.engine.inference import judge, self_test
from moleflow.service.errors import NotReadyError

IMAGE = np.full((64, 64, 3), (0, 90, 0), np.uint8)
WHITE = np.full((64, 64, 3), 255, np.uint8)


class Short(DummyDetector):
    """Runs out of memory for more than ``most`` images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.freed = most, 0

    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None
    ) -> list[Finding | Failure]:
        if len(images) > self.most:
            self.batches.append(-len(images))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().predict(images, tasks)

    def free_memory(self) -> None:
        self.freed += 1


class Raising(DummyDetector):
    """Always raises or returns the same."""

    def __init__(self, error: BaseException | None = None, findings: Any = None) -> None:
        super().__init__()
        self.error, self.findings = error, findings

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> Any:
        self.batches.append(len(images))
        if self.error is not None:
            raise self.error
        return self.findings


class Damaged(DummyDetector):
    """The experts of some products are damaged."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.damaged = names

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
        return [
            Failure(ExpertError(each.task.name, "cut.")) if each.task.name in self.damaged else each
            for each in super().predict(images, tasks)
        ]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_a_batch_that_exceeds_memory_is_halved_with_the_same_results(most: int) -> None:
    images = [np.full((64, 64, 3), (0, shade, 0), np.uint8) for shade in range(40, 120, 10)]
    model = Short(most)
    outcomes = judge(model, images, [None] * 8)
    for outcome, sound in zip(outcomes, DummyDetector().predict(images), strict=True):
        assert isinstance(outcome, Prediction)
        assert outcome.score == sound.score
    failed = sum(size < 0 for size in model.batches)
    assert model.freed == failed > 0
    assert max(size for size in model.batches) <= most


def test_an_image_that_exceeds_memory_can_be_retried_later() -> None:
    for error in (MemoryError(), RuntimeError("CUDA out of memory.")):
        for outcome in judge(Raising(error), [IMAGE] * 2, [None] * 2):
            assert isinstance(outcome, NotReadyError)
            assert "memory" in str(outcome)


def test_an_error_while_freeing_memory_is_ignored() -> None:
    class Stuck(Short):
        def free_memory(self) -> None:
            raise RuntimeError("CUDA error")

    assert all(isinstance(each, Prediction) for each in judge(Stuck(1), [IMAGE] * 2, [None] * 2))


@pytest.mark.parametrize("place", range(8))
def test_one_bad_image_fails_alone_at_any_position(place: int) -> None:
    images = [IMAGE] * 8
    images[place] = WHITE
    model = DummyDetector()
    outcomes = judge(model, images, [None] * 8)
    assert [isinstance(each, Exception) for each in outcomes] == [row == place for row in range(8)]
    assert len(model.batches) == 7  # 8, twice 4, twice 2, twice 1


def test_a_model_that_always_fails_is_called_a_bounded_number_of_times() -> None:
    model = Raising(ValueError("broken"))
    outcomes = judge(model, [IMAGE] * 8, [None] * 8)
    assert len(model.batches) == 15
    assert all("broken" in str(each) for each in outcomes)
    assert len({id(each) for each in outcomes}) == 8


def test_nothing_is_retried_when_the_callback_declines() -> None:
    model = Raising(RuntimeError("CUDA error: device-side assert triggered"))
    outcomes = judge(model, [IMAGE] * 8, [None] * 8, on_failure=lambda error, count: False)
    assert model.batches == [8]
    assert all("device-side assert" in str(each) for each in outcomes)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration()])
def test_a_system_exit_is_contained_in_the_batch(error: BaseException) -> None:
    (outcome,) = judge(Raising(error), [IMAGE], [None])
    assert isinstance(outcome, PredictionError)
    assert type(error).__name__ in str(outcome)


def test_an_error_without_a_readable_message_is_still_reported() -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    (outcome,) = judge(Raising(UnprintableError()), [IMAGE], [None])
    assert "UnprintableError" in str(outcome)


@pytest.mark.parametrize(
    ("findings", "hint"),
    [([], "0 findings for 1"), (None, "NoneType for 1"), (["good"], "a str instead"), ([None], "a NoneType instead")],
)
def test_anything_but_a_list_of_findings_is_a_failure(findings: Any, hint: str) -> None:
    (outcome,) = judge(Raising(findings=findings), [IMAGE], [None])
    assert isinstance(outcome, PredictionError)
    assert hint in str(outcome)


def test_a_failed_batch_is_released_from_memory() -> None:
    image = WHITE.copy()
    freed = weakref.ref(image)
    gc.disable()
    try:
        outcomes = judge(DummyDetector(), [image, IMAGE], [None] * 2)
        assert isinstance(outcomes[0], PredictionError)
        del image
        assert freed() is None
    finally:
        gc.enable()


def test_a_self_test_returns_the_outcome_for_a_blank_image() -> None:
    assert isinstance(self_test(DummyDetector(), "red"), Prediction)
    assert "ValueError: broken" in str(self_test(Raising(ValueError("broken")), "red"))
    assert isinstance(self_test(Damaged("red"), "red"), ExpertError)
