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


def test_evicted_experts_are_dropped() -> None:
    dropped: list[str] = []
    cache = ExpertCache(str, 2, drop=dropped.append)
    for index in (0, 1, 0, 2):
        cache.get(index)
    assert dropped == ["1"]


def test_an_expert_is_dropped_before_the_next_one_is_made() -> None:
    events: list[str] = []
    cache = ExpertCache(lambda index: events.append(f"made {index}"), 1, drop=lambda expert: events.append("dropped"))
    cache.get(0)
    cache.get(1)
    assert events == ["made 0", "dropped", "made 1"]


def test_cleared_experts_are_dropped() -> None:
    dropped: list[str] = []
    cache = ExpertCache(str, 2, drop=dropped.append)
    for index in (0, 1):
        cache.get(index)
    cache.clear()
    assert sorted(dropped) == ["0", "1"]


def test_experts_that_could_not_be_made_are_not_dropped() -> None:
    dropped: list[str] = []

    def make(index: int) -> str:
        if index == 0:
            raise OSError("damaged")
        return str(index)

    cache = ExpertCache(make, 1, drop=dropped.append)
    for index in (0, 1, 0, 2):
        if index == 0:
            with pytest.raises(OSError, match="damaged"):
                cache.get(index)
        else:
            cache.get(index)
    cache.clear()
    assert dropped == ["1", "2"]


def test_an_expert_evicted_during_creation_is_dropped_once_it_is_made() -> None:
    dropped: list[str] = []

    def make(index: int) -> str:
        if index == 0:
            cache.get(1)
            assert dropped == []
        return str(index)

    cache = ExpertCache(make, 1, drop=dropped.append)
    assert cache.get(0) == "0"
    assert dropped == ["0"]


def test_an_expert_that_fails_after_it_was_evicted_is_not_dropped() -> None:
    dropped: list[str] = []

    def make(index: int) -> str:
        if index == 0:
            cache.get(1)
            raise OSError("damaged")
        return str(index)

    cache = ExpertCache(make, 1, drop=dropped.append)
    with pytest.raises(OSError, match="damaged"):
        cache.get(0)
    assert dropped == []
