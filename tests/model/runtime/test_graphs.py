"""Recorded functions: batch sizes, and what happens where nothing can be recorded."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from moleflow.model.runtime import graphs
from moleflow.model.runtime.graphs import Captured

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def doubled(values: torch.Tensor) -> tuple[torch.Tensor]:
    return (2 * values,)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that are recorded, on what appears to be a GPU."""
    sizes: list[int] = []

    class Recording:
        def __init__(self, function: Callable, inputs: tuple[torch.Tensor, ...], size: int, pool: object) -> None:
            sizes.append(size)
            self.size, self.replay = size, lambda inputs: function(*inputs)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(graphs, "on_device", lambda device: nullcontext())
    monkeypatch.setattr(graphs, "_Recording", Recording)
    return sizes


def test_on_a_cpu_the_function_gets_the_inputs_themselves() -> None:
    given: list[torch.Tensor] = []

    def kept(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given.extend(inputs)
        return inputs

    inputs = torch.zeros(100, 2), torch.ones(100)
    found = Captured(kept, CPU)(*inputs)
    assert [id(each) for each in (*given, *found)] == 2 * [id(each) for each in inputs]


def test_on_a_cpu_one_size_is_enough_to_prepare() -> None:
    assert Captured(doubled, CPU).sizes(5) == [5]


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (4, [1, 2, 4]), (5, [1, 2, 4, 8]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_on_a_gpu_all_sizes_that_smaller_batches_are_padded_to_are_prepared(
    most: int, sizes: list[int], recorded: list[int]
) -> None:
    assert Captured(doubled, CUDA).sizes(most) == sizes


def test_a_batch_that_is_divided_needs_no_size_above_the_last(recorded: list[int]) -> None:
    assert Captured(doubled, CUDA).sizes(1000)[-1] == 64


def test_a_batch_is_padded_to_the_next_size(recorded: list[int]) -> None:
    captured, values = Captured(doubled, CUDA), torch.randn(5, 3)
    assert torch.equal(captured(values)[0], 2 * values)
    assert recorded == [8]


def test_a_batch_larger_than_the_last_size_is_divided(recorded: list[int]) -> None:
    captured, values = Captured(doubled, CUDA), torch.randn(70, 3)
    assert torch.equal(captured(values)[0], 2 * values)
    assert recorded == [64, 8]


def test_a_size_is_recorded_once_for_each_shape_of_an_image(recorded: list[int]) -> None:
    captured = Captured(doubled, CUDA)
    for shape in ((5, 3), (7, 3), (5, 4), (8, 4)):
        captured(torch.zeros(shape))
    assert recorded == [8, 8]


def test_what_was_cleared_is_recorded_again(recorded: list[int]) -> None:
    captured = Captured(doubled, CUDA)
    captured(torch.zeros(1))
    captured.clear()
    captured(torch.zeros(1))
    assert recorded == [1, 1]


def test_a_function_that_cannot_be_recorded_is_called_instead_with_one_warning(
    recorded: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_Recording", fails)
    captured, values = Captured(doubled, CUDA), torch.randn(70)
    for _ in range(2):
        assert torch.equal(captured(values)[0], 2 * values)
    (record,) = caplog.records
    assert "slower" in record.message
    assert "not permitted" in record.message


def test_recording_is_tried_again_after_the_memory_was_exceeded(
    recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    captured = Captured(doubled, CUDA)
    with monkeypatch.context() as patched:
        patched.setattr(graphs, "_Recording", fails)
        with pytest.raises(torch.OutOfMemoryError):
            captured(torch.zeros(2))
    captured(torch.zeros(2))
    assert recorded == [2]
