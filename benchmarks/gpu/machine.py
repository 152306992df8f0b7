"""What the machine is, and its two ceilings: the memory's bandwidth and the rate of matrix products."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.timing import device_ms, needs_cuda
from benchmarks.shared.machine import PACKAGES, code_digest, commit, processor
from moleflow.model.runtime.device import resolve_device
from moleflow.model.runtime.threads import available_processors

__all__ = ["measure"]

COPIED_BYTES = 4 * 2**30
"""Size of the buffer that is copied: far above every cache."""

SIDE = 8192
"""Rows and columns of the matrices."""

ROUNDS = 15


def measure(context: Context) -> None:
    """Name, versions and ceilings."""
    device, result = resolve_device("auto"), context.result
    result["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "no CUDA device"
    result["processor"] = f"{processor()}, of which {available_processors()} may be used"
    result["memory_GiB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    result["versions"] = _versions()
    result["code"] = {"commit": commit(), "digest": code_digest()[:12]}
    context.attempt(result, "GPU", lambda: _gpu(device))
    context.attempt(result, "copy_GB_per_s", lambda: _copy(device))
    context.attempt(result, "bf16_TFLOP_per_s", lambda: _product(device))


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "CUDA": torch.version.cuda or "none"}
    found["cuDNN"] = str(torch.backends.cudnn.version() or "none")
    for name in (*PACKAGES, "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _gpu(device: torch.device) -> dict[str, Any]:
    """Properties of the GPU, and what its driver says."""
    needs_cuda(device)
    properties = torch.cuda.get_device_properties(device)
    fields = "driver_version,power.limit,clocks.max.sm,clocks.max.memory,mig.mode.current"
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GiB": round(properties.total_memory / 2**30, 1),
        fields: said or "unknown",
    }


def _copy(device: torch.device) -> float:
    """GB/s, bytes read and bytes written, of a copy within the device's memory."""
    needs_cuda(device)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / device_ms(lambda: target.copy_(source), device, ROUNDS) / 1e6


def _product(device: torch.device) -> float:
    """TFLOP/s of a product of two large matrices of random numbers in bf16."""
    needs_cuda(device)
    one, other = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(one)
    for _ in range(ROUNDS):  # the clock settles
        torch.mm(one, other, out=out)
    return 2 * SIDE**3 / device_ms(lambda: torch.mm(one, other, out=out), device, ROUNDS) / 1e9
