"""Device and precision."""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import get_args

import torch

from moleflow.model.config import Engine, Precision
from moleflow.model.errors import ConfigurationError, DeviceError

__all__ = [
    "at_least_float32",
    "autocast",
    "matmul_dtype",
    "resolve_device",
    "resolve_engine",
    "resolve_precision",
]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """``auto`` is CUDA if available, else the CPU.

    Raises:
        DeviceError: the device is unknown, unsupported or not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N.") from error
    if resolved.type == "cpu":
        return resolved
    if resolved.type != "cuda":
        raise DeviceError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device!r} was requested but no CUDA device is available; use --device cpu or auto.")
    if (resolved.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r} does not exist; this machine has {torch.cuda.device_count()} CUDA device(s)."
        )
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 where the hardware supports it natively, else fp32.

    A CPU without bf16 instructions emulates them, up to a hundred times slower than fp32.

    Raises:
        ConfigurationError: the name is unknown.
        DeviceError: fp16 on a CPU.
    """
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision {precision!r} is not known; use one of {', '.join(get_args(Precision))}.")
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        return "bf16" if _cpu_multiplies_bf16() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("precision fp16 needs a CUDA device; on a CPU use auto, fp32 or bf16.")
    return precision


def resolve_engine(engine: str, device: torch.device, precision: str) -> str:
    """What computes: ``torch``, or ``openvino`` on a CPU in float32.

    ``auto`` is OpenVINO where it is installed and can do it, for the features only (``moleflow.model.engines``).
    ``precision`` is the resolved one.

    Raises:
        ConfigurationError: the name is unknown, or OpenVINO is not installed or cannot do it.
    """
    if engine not in get_args(Engine):
        raise ConfigurationError(f"engine {engine!r} is not known; use one of {', '.join(get_args(Engine))}.")
    can, installed = device.type == "cpu" and precision == "fp32", importlib.util.find_spec("openvino") is not None
    if engine == "auto":
        return "openvino" if can and installed else "torch"
    if engine == "openvino" and not installed:
        raise ConfigurationError("engine 'openvino' is not installed; run pip install 'moleflow[openvino]'.")
    if engine == "openvino" and not can:
        raise ConfigurationError(
            f"engine 'openvino' computes in fp32 on a CPU, and this is {precision} on {device}; use engine auto or "
            "torch, or device cpu with precision fp32."
        )
    return engine


def _cpu_multiplies_bf16() -> bool:
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def matmul_dtype(precision: str) -> torch.dtype:
    """The type of matrix products at the resolved ``precision``."""
    return _DTYPES[precision]


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to the resolved ``precision``; a no-op for fp32.

    On a GPU, fp32 turns TF32 off for this process: PyTorch leaves it on for convolutions, with errors of 1e-3. To
    change it for each call would be a race between threads.
    """
    if precision == "fp32":
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        return nullcontext()
    return torch.autocast(device.type, dtype=matmul_dtype(precision))


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half-precision values as float32; float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
