"""Device, precision and engine resolve as documented; what is not available is an error that says so."""

import importlib.util

import pytest
import torch

from moleflow.model.errors import ConfigurationError, DeviceError
from moleflow.model.runtime.device import (
    at_least_float32,
    autocast,
    resolve_device,
    resolve_engine,
    resolve_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("present", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_is_cuda_if_available(monkeypatch: pytest.MonkeyPatch, present: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto").type == expected


def test_unavailable_cuda_is_an_error_not_a_fallback_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'cuda' was requested but no CUDA device is available; use --device cpu"):
        resolve_device("cuda")


def test_a_cuda_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match=r"'cuda:2' does not exist; this machine has 2 CUDA"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:x"])
def test_an_unsupported_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="use auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_with_hardware_support(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")])
def test_auto_is_bf16_on_cuda_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == expected


def test_an_explicit_precision_is_used() -> None:
    assert [resolve_precision(name, CUDA) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert resolve_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", CPU)


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'half' is not known; use one of auto, fp32, bf16, fp16"):
        resolve_precision("half", CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_run_in_the_resolved_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_only_half_precision_is_widened() -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    widened = [at_least_float32(torch.ones(1, dtype=kind)).dtype for kind in kinds]
    assert widened == [torch.float32, torch.float32, torch.float32, torch.float64]


@pytest.fixture(params=[True, False], ids=["installed", "not_installed"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether OpenVINO seems to be installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if request.param else None)
    return request.param


@pytest.mark.parametrize(
    ("device", "precision", "can"), [(CPU, "fp32", True), (CPU, "bf16", False), (CUDA, "fp32", False)]
)
def test_auto_is_openvino_where_it_is_installed_and_computes_the_same(
    installed: bool, device: torch.device, precision: str, can: bool
) -> None:
    assert resolve_engine("auto", device, precision) == ("openvino" if installed and can else "torch")
    assert resolve_engine("torch", device, precision) == "torch"


def test_an_engine_that_is_not_installed_says_how_to_install_it(installed: bool) -> None:
    if installed:
        assert resolve_engine("openvino", CPU, "fp32") == "openvino"
    else:
        with pytest.raises(ConfigurationError, match=r"pip install 'moleflow\[openvino\]'"):
            resolve_engine("openvino", CPU, "fp32")


def test_an_engine_is_not_used_for_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for device, precision in ((CPU, "bf16"), (CUDA, "fp32")):
        with pytest.raises(ConfigurationError, match=f"computes in fp32 on a CPU, and this is {precision} on {device}"):
            resolve_engine("openvino", device, precision)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="engine 'onnx' is not known; use one of auto, torch, openvino"):
        resolve_engine("onnx", CPU, "fp32")
