"""The expert cache: eviction, concurrent creation, and failures."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from moleflow.model.errors import ExpertError
from moleflow.model.runtime.lru import ExpertCache

PATIENCE_SECONDS = 30


def test_the_least_recently_used_expert_is_evicted() -> None:
    made: list[int] = []
    cache = ExpertCache(lambda index: made.append(index) or index, 2)
    for index in (0, 1, 0, 2, 0, 1, 2):
        assert cache.get(index) == index
    assert made == [0, 1, 2, 1, 2]


def test_the_limit_is_never_exceeded() -> None:
    alive: set[int] = set()
    most = 0

    class Expert:
        def __init__(self, index: int) -> None:
            nonlocal most
            self.index = index
            alive.add(index)
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.discard(self.index)

    cache = ExpertCache(Expert, 3)
    for index in range(50):
        assert cache.get(index).index == index
    assert most == len(alive) == 3


def test_concurrent_requests_create_an_expert_once_and_others_do_not_wait() -> None:
    begun, may_end = threading.Event(), threading.Event()
    made: list[int] = []

    def make(index: int) -> object:
        made.append(index)
        if index == 0:
            begun.set()
            assert may_end.wait(PATIENCE_SECONDS)
        return object()

    cache = ExpertCache(make, 4)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.get, 0) for _ in range(3)]
        assert begun.wait(PATIENCE_SECONDS)
        other = pool.submit(cache.get, 1).result(PATIENCE_SECONDS)  # while the first is still being made
        assert not any(each.done() for each in waiting)
        may_end.set()
        found = {each.result(PATIENCE_SECONDS) for each in waiting}
    assert len(found) == 1
    assert other not in found
    assert made == [0, 1]


def test_an_expert_evicted_during_creation_still_reaches_waiting_threads() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def make(index: int) -> int:
        if index == 0:
            begun.set()
            assert may_end.wait(PATIENCE_SECONDS)
        return index

    cache = ExpertCache(make, 1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, 0)
        assert begun.wait(PATIENCE_SECONDS)
        assert cache.get(1) == 1
        may_end.set()
        assert first.result(PATIENCE_SECONDS) == 0


def test_a_failure_reaches_all_waiting_threads_and_the_next_request_retries() -> None:
    begun, may_end = threading.Event(), threading.Event()
    attempts: list[int] = []

    def make(index: int) -> int:
        attempts.append(index)
        if len(attempts) == 1:
            begun.set()
            assert may_end.wait(PATIENCE_SECONDS)
            raise OSError("damaged")
        return index

    cache = ExpertCache(make, 2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(cache.get, 7)]
        assert begun.wait(PATIENCE_SECONDS)
        waiting.append(pool.submit(cache.get, 7))
        may_end.set()
        for each in waiting[:1]:
            with pytest.raises(OSError, match="damaged"):
                each.result(PATIENCE_SECONDS)
        # The second thread waited and failed too, or came later and created it again.
        assert isinstance(waiting[1].exception(PATIENCE_SECONDS), OSError) or len(attempts) == 2
    assert cache.get(7) == 7


def test_a_damaged_expert_is_retried_after_a_while() -> None:
    attempts: list[int] = []

    def make(index: int) -> int:
        attempts.append(index)
        if len(attempts) == 1:
            raise ExpertError("brick", "its digest is wrong.")
        return index

    patient = ExpertCache(make, 2, retry_seconds=3600)
    errors = []
    for _ in range(3):
        with pytest.raises(ExpertError, match="'brick'.*its digest is wrong") as caught:
            patient.get(0)
        errors.append(caught.value)
    assert attempts == [0]
    assert errors[1] is not errors[2]

    attempts.clear()
    hasty = ExpertCache(make, 2, retry_seconds=0)
    with pytest.raises(ExpertError):
        hasty.get(0)
    assert hasty.get(0) == 0
