"""The queue before the model: bounded, in batches, and never leaving anybody without an answer."""

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager

import numpy as np
import pytest
from dummy import DummyDetector

from moleflow.model.errors import OverloadedError, PredictionError
from moleflow.service.engine.batching import Batcher
from moleflow.service.engine.inference import Outcome, judge
from moleflow.service.errors import NotReadyError

IMAGE = np.full((64, 64, 3), (0, 90, 0), np.uint8)

WHITE = np.full((64, 64, 3), 255, np.uint8)


def make(capacity: int = 10, max_batch_size: int = 4, max_wait_seconds: float = 0.0) -> Batcher:
    return Batcher(capacity=capacity, max_batch_size=max_batch_size, max_wait_seconds=max_wait_seconds)


@contextmanager
def running(batcher: Batcher, model: DummyDetector) -> Iterator[None]:
    """The batcher's thread; closed and joined at the end."""
    thread = threading.Thread(target=batcher.run, args=(lambda images, tasks: judge(model, images, tasks),))
    thread.start()
    try:
        yield
    finally:
        model.gate.set()
        batcher.close()
        thread.join(120)
        assert not thread.is_alive()


def hold(batcher: Batcher, model: DummyDetector) -> "Future[object]":
    """Let one image keep the model busy until its gate opens."""
    model.gate.clear()
    model.entered.clear()
    held = batcher.submit(IMAGE, None)
    assert model.entered.wait(120)
    return held


def test_an_image_gets_its_own_prediction() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        colours = np.eye(3, dtype=np.uint8) * 90
        results = [batcher.submit(np.broadcast_to(colour, (64, 64, 3)), None) for colour in colours]
        assert [result.result(120).finding.task.name for result in results] == ["red", "green", "blue"]


def test_the_wanted_product_reaches_the_model() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        assert batcher.submit(IMAGE, "blue").result(120).finding.task.name == "blue"


def test_images_that_wait_together_share_a_batch() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        hold(batcher, model)
        waiting = [batcher.submit(IMAGE, None) for _ in range(6)]
        model.gate.set()
        wait(waiting, 120)
    assert model.batches == [1, 4, 2]


def test_a_batch_waits_for_an_image_that_is_on_its_way() -> None:
    batcher, model = make(max_wait_seconds=30), DummyDetector()
    with running(batcher, model), batcher.expecting():
        first = batcher.submit(IMAGE, None)
        assert not model.entered.wait(0.1)
        second = batcher.submit(IMAGE, None)
        third, fourth = batcher.submit(IMAGE, None), batcher.submit(IMAGE, None)
        wait([first, second, third, fourth], 120)
    assert model.batches == [4]


def test_a_batch_starts_at_once_when_nothing_else_is_on_its_way() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model):
        assert batcher.submit(IMAGE, None).result(120)


def test_a_batch_never_waits_for_the_image_that_it_begins_with() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model), batcher.expecting() as expected:
        assert batcher.submit(IMAGE, None, expected).result(120)


def test_a_batch_waits_for_another_image_than_the_one_that_came() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model), batcher.expecting() as one:
        with batcher.expecting():
            result = batcher.submit(IMAGE, None, one)
            assert not model.entered.wait(0.1)
        assert result.result(120)


def test_a_batch_starts_when_the_image_on_its_way_failed_to_come() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model):
        with batcher.expecting():
            result = batcher.submit(IMAGE, None)
        assert result.result(120)


def test_a_batch_waits_no_longer_than_it_should() -> None:
    batcher, model = make(max_wait_seconds=0.01), DummyDetector()
    with running(batcher, model), batcher.expecting():
        assert batcher.submit(IMAGE, None).result(120)


def test_a_full_queue_refuses_with_a_time_to_wait() -> None:
    batcher, model = make(capacity=2), DummyDetector()
    with running(batcher, model):
        batcher.submit(IMAGE, None).result(120)  # so that the time an image takes is known
        hold(batcher, model)
        batcher.submit(IMAGE, None)
        batcher.submit(IMAGE, None)
        with pytest.raises(OverloadedError) as caught:
            batcher.submit(IMAGE, None)
    assert caught.value.retry_after_seconds > 0


def test_a_cancelled_image_leaves_the_queue_at_once() -> None:
    batcher, model = make(capacity=2), DummyDetector()
    with running(batcher, model):
        hold(batcher, model)
        leaving, staying = batcher.submit(IMAGE, None), batcher.submit(IMAGE, None)
        assert leaving.cancel()
        assert len(batcher) == 1
        batcher.submit(IMAGE, None)  # its place is free
        model.gate.set()
        staying.result(120)
    assert model.batches == [1, 2]


def test_a_queue_of_cancelled_images_costs_no_batch() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        held = hold(batcher, model)
        for result in [batcher.submit(IMAGE, None) for _ in range(3)]:
            result.cancel()
        model.gate.set()
        held.result(120)
    assert model.batches == [1]


def test_an_image_that_the_model_fails_on_fails_alone() -> None:
    batcher, model = make(max_batch_size=2), DummyDetector()
    with running(batcher, model):
        before = hold(batcher, model)
        mate, doomed = batcher.submit(IMAGE, None), batcher.submit(WHITE, None)
        after = batcher.submit(IMAGE, None)
        model.gate.set()
        for result in (before, mate, after):
            assert result.result(120)
        with pytest.raises(PredictionError, match="ArithmeticError: the dummy fails on white"):
            doomed.result(120)


def test_whoever_waits_can_be_answered_while_the_model_is_at_it() -> None:
    batcher, model = make(max_batch_size=1), DummyDetector()
    with running(batcher, model):
        inside = hold(batcher, model)
        behind = batcher.submit(IMAGE, None)
        batcher.fail_waiting("too late")
        for result in (inside, behind):
            with pytest.raises(NotReadyError, match="too late"):
                result.result(120)
        model.gate.set()
        assert batcher.submit(IMAGE, None).result(120)
    assert model.batches == [1, 1]


def test_between_batches_there_is_time_for_other_work() -> None:
    batcher, model = make(), DummyDetector()
    rests = []

    def rest() -> float | None:
        rests.append(len(model.batches))
        return 0.0 if len(rests) < 3 else None

    thread = threading.Thread(target=batcher.run, args=(lambda i, t: judge(model, i, t), rest))
    thread.start()
    assert batcher.submit(IMAGE, None).result(120)
    batcher.close()
    thread.join(120)
    assert len(rests) >= 3
    assert rests[-1] == 1


def test_closing_finishes_what_was_accepted() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        hold(batcher, model)
        waiting = [batcher.submit(IMAGE, None) for _ in range(5)]
        batcher.close()
        model.gate.set()
        assert all(result.result(120) for result in waiting)


def test_a_closed_queue_takes_nothing() -> None:
    batcher = make()
    batcher.close()
    with pytest.raises(NotReadyError, match="stopping"):
        batcher.submit(IMAGE, None)


def test_a_thread_that_ends_early_leaves_nobody_waiting() -> None:
    entered, leave = threading.Event(), threading.Event()

    def ending(images: Sequence[np.ndarray], tasks: Sequence[str | None]) -> list[Outcome]:
        entered.set()
        leave.wait(120)
        raise SystemExit

    def run() -> None:
        with pytest.raises(SystemExit):
            batcher.run(ending)

    batcher = make(max_batch_size=1)
    thread = threading.Thread(target=run)
    thread.start()
    inside = batcher.submit(IMAGE, None)
    assert entered.wait(120)
    behind = [batcher.submit(IMAGE, None) for _ in range(3)]
    leave.set()
    for result in (inside, *behind):
        with pytest.raises(NotReadyError, match="thread ended"):
            result.result(120)
    thread.join(120)


def test_the_time_an_image_takes_is_learned() -> None:
    batcher, model = make(), DummyDetector()
    assert batcher.seconds_per_image == 0
    with running(batcher, model):
        batcher.submit(IMAGE, None).result(120)
    assert batcher.seconds_per_image > 0


def test_an_answered_image_is_freed_without_waiting_for_the_collector() -> None:
    batcher, model = make(), DummyDetector()
    rgb_image = IMAGE.copy()
    freed = weakref.ref(rgb_image)
    gc.disable()
    try:
        with running(batcher, model):
            result = batcher.submit(rgb_image, None)
            result.result(120)
        del rgb_image, result
        assert freed() is None
    finally:
        gc.enable()
