"""Triton kernels are used where they run, and nowhere else."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from moleflow.model.runtime import kernels
from moleflow.model.runtime.kernels import can_run_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """The answer is kept for a device."""
    can_run_kernels.cache_clear()
    yield
    can_run_kernels.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What appears to be a GPU on which Triton works; to be changed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "_runs", lambda device: True)
    return monkeypatch


def fails(device: torch.device) -> bool:
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")


def test_a_cpu_does_not_run_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not can_run_kernels(CPU)


def test_a_cpu_runs_kernels_in_tritons_interpreter(gpu: pytest.MonkeyPatch) -> None:
    gpu.setenv("TRITON_INTERPRET", "1")
    assert can_run_kernels(CPU)


def test_a_gpu_runs_kernels(gpu: pytest.MonkeyPatch) -> None:
    assert can_run_kernels(CUDA)


def test_nothing_runs_kernels_without_triton(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(importlib.util, "find_spec", lambda name: None)
    assert not can_run_kernels(CUDA)


def test_an_old_gpu_does_not_run_kernels(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not can_run_kernels(CUDA)


def test_a_gpu_without_its_driver_does_not_run_kernels(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert not can_run_kernels(CUDA)


def test_a_gpu_on_which_a_kernel_computes_something_else_does_not_run_kernels(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(kernels, "_runs", lambda device: False)
    assert not can_run_kernels(CUDA)


def test_a_gpu_for_which_triton_cannot_compile_does_not_run_kernels(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(kernels, "_runs", fails)
    assert not can_run_kernels(CUDA)


def test_that_triton_cannot_compile_is_logged_once_with_the_reason(
    gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.setattr(kernels, "_runs", fails)
    for _ in range(2):
        can_run_kernels(CUDA)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Failed to find C compiler" in record.message
