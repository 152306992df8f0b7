"""Out-of-memory errors and lost devices are told apart from other errors."""

import numpy as np
import pytest
import torch

from moleflow.model.errors import describe
from moleflow.model.runtime.faults import freeing_memory, is_device_lost, is_out_of_memory


class UnprintableError(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_errors_are_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error)


def test_a_real_out_of_memory_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as missing:
        np.ones(2**50)
    assert is_out_of_memory(missing.value)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: misaligned address",
    ],
)
def test_a_lost_device_is_recognised(said: str) -> None:
    # Before PyTorch 2.8 these were plain RuntimeErrors.
    error = getattr(torch, "AcceleratorError", RuntimeError)(said)
    assert is_device_lost(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes differ"), UnprintableError()])
def test_other_errors_are_neither(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert not is_device_lost(error)


def test_any_error_is_described_on_one_short_line() -> None:
    assert describe(ValueError("two\nlines")) == "ValueError: two lines"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert describe(UnprintableError()) == "UnprintableError"
    assert len(describe(ValueError("x" * 10_000))) < 400


@pytest.mark.parametrize(
    ("error", "freed"), [(torch.OutOfMemoryError("CUDA out of memory."), 1), (RuntimeError("shape mismatch"), 0)]
)
def test_memory_is_freed_when_it_runs_out_and_the_error_passes(error: Exception, freed: int) -> None:
    calls: list[None] = []
    with pytest.raises(type(error), match=str(error)), freeing_memory(lambda: calls.append(None)):
        raise error
    assert len(calls) == freed
