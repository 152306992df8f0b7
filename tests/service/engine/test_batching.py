"""The queue: bounded, in batches, and with a result for every image."""

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from time import monotonic
from typing import NoReturn

import numpy as np
import pytest
from dummy import DummyDetector

from moleflow.model.errors import PredictionError
from moleflow.service.engine.batching import Batcher, Inferred, Judge
from moleflow.service.engine.inference import judge
from moleflow.service.errors import DeadlineError, NotReadyError, OverloadedError

IMAGE = np.full((64, 64, 3), (0, 90, 0), np.uint8)

WHITE = np.full((64, 64, 3), 255, np.uint8)


def make(capacity: int = 10, max_batch_size: int = 4, max_wait_seconds: float = 0.0) -> Batcher:
    return Batcher(capacity=capacity, max_batch_size=max_batch_size, max_wait_seconds=max_wait_seconds)


def judged_by(model: DummyDetector) -> Judge:
    """What the batcher's thread calls."""
    return lambda images, tasks: (model.checkpoint, judge(model, images, tasks))


@contextmanager
def running(batcher: Batcher, model: DummyDetector) -> Iterator[None]:
    """Runs the batcher's thread; closed and joined at the end."""
    thread = threading.Thread(target=batcher.run, args=(judged_by(model),))
    thread.start()
    try:
        yield
    finally:
        model.gate.set()
        batcher.close()
        thread.join(120)
        assert not thread.is_alive()


def hold(batcher: Batcher, model: DummyDetector) -> Future[Inferred]:
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


def test_the_named_product_is_passed_to_the_model() -> None:
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


def test_a_batch_waits_for_an_expected_image() -> None:
    batcher, model = make(max_wait_seconds=30), DummyDetector()
    with running(batcher, model), batcher.expecting():
        first = batcher.submit(IMAGE, None)
        assert not model.entered.wait(0.1)
        second = batcher.submit(IMAGE, None)
        third, fourth = batcher.submit(IMAGE, None), batcher.submit(IMAGE, None)
        wait([first, second, third, fourth], 120)
    assert model.batches == [4]


def test_a_batch_starts_at_once_when_no_image_is_expected() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model):
        assert batcher.submit(IMAGE, None).result(120)


def test_a_batch_does_not_wait_for_its_own_first_image() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model), batcher.expecting() as expected:
        assert batcher.submit(IMAGE, None, expected).result(120)


def test_a_batch_waits_for_other_expected_images() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model), batcher.expecting() as one:
        with batcher.expecting():
            result = batcher.submit(IMAGE, None, one)
            assert not model.entered.wait(0.1)
        assert result.result(120)


def test_a_batch_starts_when_the_expected_image_fails_to_arrive() -> None:
    batcher, model = make(max_wait_seconds=3600), DummyDetector()
    with running(batcher, model):
        with batcher.expecting():
            result = batcher.submit(IMAGE, None)
        assert result.result(120)


def test_a_batch_waits_no_longer_than_its_limit() -> None:
    batcher, model = make(max_wait_seconds=0.01), DummyDetector()
    with running(batcher, model), batcher.expecting():
        assert batcher.submit(IMAGE, None).result(120)


def test_a_full_queue_rejects_with_a_retry_time() -> None:
    batcher, model = make(capacity=2), DummyDetector()
    with running(batcher, model):
        batcher.submit(IMAGE, None).result(120)  # so that the time per image is known
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
        batcher.submit(IMAGE, None)  # its slot is free
        model.gate.set()
        staying.result(120)
    assert model.batches == [1, 2]


def test_a_queue_of_cancelled_images_makes_no_batch() -> None:
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


def test_waiting_images_can_be_failed_while_the_model_is_busy() -> None:
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


def test_other_work_runs_between_batches() -> None:
    batcher, model = make(), DummyDetector()
    rests = []

    def rest() -> float | None:
        rests.append(len(model.batches))
        return 0.0 if len(rests) < 3 else None

    thread = threading.Thread(target=batcher.run, args=(judged_by(model), rest))
    thread.start()
    assert batcher.submit(IMAGE, None).result(120)
    batcher.close()
    thread.join(120)
    assert len(rests) >= 3
    assert rests[-1] == 1


def test_an_interrupt_makes_other_work_run_without_an_image() -> None:
    batcher, model = make(), DummyDetector()
    rests: list[threading.Event] = [threading.Event(), threading.Event()]
    ahead = iter(rests)

    def rest() -> None:
        next(ahead).set()

    thread = threading.Thread(target=batcher.run, args=(judged_by(model), rest))
    thread.start()
    assert rests[0].wait(120)
    assert not rests[1].is_set()
    batcher.interrupt()
    assert rests[1].wait(120)
    batcher.close()
    thread.join(120)


def test_closing_completes_accepted_images() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        hold(batcher, model)
        waiting = [batcher.submit(IMAGE, None) for _ in range(5)]
        batcher.close()
        model.gate.set()
        assert all(result.result(120) for result in waiting)


def test_a_closed_queue_rejects_images() -> None:
    batcher = make()
    batcher.close()
    with pytest.raises(NotReadyError, match="stopping"):
        batcher.submit(IMAGE, None)


def test_a_dying_thread_fails_all_waiting_images() -> None:
    entered, leave = threading.Event(), threading.Event()

    def ending(images: Sequence[np.ndarray], tasks: Sequence[str | None]) -> NoReturn:
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
        with pytest.raises(NotReadyError, match="thread has died"):
            result.result(120)
    thread.join(120)


def test_the_time_per_image_is_measured() -> None:
    batcher, model = make(), DummyDetector()
    assert batcher.seconds_per_image == 0
    with running(batcher, model):
        batcher.submit(IMAGE, None).result(120)
    assert batcher.seconds_per_image > 0


def test_a_processed_image_is_freed_without_garbage_collection() -> None:
    batcher, model = make(), DummyDetector()
    sample_image = IMAGE.copy()
    freed = weakref.ref(sample_image)
    gc.disable()
    try:
        with running(batcher, model):
            result = batcher.submit(sample_image, None)
            result.result(120)
        del sample_image, result
        assert freed() is None
    finally:
        gc.enable()


def test_a_late_image_takes_no_place_in_a_batch_even_if_nobody_cancels_it() -> None:
    batcher, model = make(), DummyDetector()
    with running(batcher, model):
        hold(batcher, model)
        late = batcher.submit(IMAGE, None, due=monotonic())
        timely = batcher.submit(IMAGE, None, due=monotonic() + 3600)
        model.gate.set()
        assert timely.result(120).finding.verdict == "good"
        with pytest.raises(DeadlineError):
            late.result(120)
    assert model.batches == [1, 1]
