"""Parallel results equal sequential ones, for any number of threads."""

import threading
from collections.abc import Iterator

import pytest
import torch

from moleflow.model.runtime.parallel import parallel_map


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 17])
def test_results_are_in_the_order_of_the_pieces(threads: int, count: int) -> None:
    assert parallel_map(lambda piece: piece**2, range(count)) == [piece**2 for piece in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_pieces_share_the_callers_threads_and_restore_their_number(threads: int, count: int) -> None:
    used = parallel_map(lambda _: torch.get_num_threads(), range(count))
    rest = count % threads
    assert used == [1] * (count - rest) + [threads // max(rest, 1)] * rest
    assert torch.get_num_threads() == threads
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [threads]


def test_as_many_pieces_run_at_once_as_there_are_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    meeting = threading.Barrier(3, timeout=60)
    try:
        assert sorted(parallel_map(lambda _: meeting.wait(), range(3))) == [0, 1, 2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_the_callers_modes_apply_to_every_piece(threads: int, inference: bool, half: bool) -> None:
    def modes(_: int) -> tuple[bool, torch.dtype]:
        return torch.is_inference_mode_enabled(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = parallel_map(modes, range(9))
    assert found == [(inference, torch.bfloat16 if half else torch.float32)] * 9


def test_an_error_in_a_piece_reaches_the_caller_and_restores_the_threads(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda piece: 1 // (piece - 4), range(8))
    assert torch.get_num_threads() == threads
