"""Whether kernels written in Triton can run on a device.

Triton comes with PyTorch's CUDA builds and compiles kernels on first use, for which it needs a C compiler. Where it
cannot, plain PyTorch operators are used.
"""

import functools
import importlib.util
import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from moleflow.model.errors import describe

__all__ = ["can_run_kernels", "on_device"]

_LEAST_CAPABILITY = (8, 0)
"""Ampere: bf16 matrix products."""

_logger = logging.getLogger(__name__)


@functools.cache
def can_run_kernels(device: torch.device) -> bool:
    """Whether Triton kernels compile and run on ``device``; also on a CPU in Triton's interpreter, for tests."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    try:
        return _runs(device)
    except Exception as error:  # the compiler raises anything
        _logger.warning("Triton kernels do not work here, and prediction is slower without: %s", describe(error))
        return False


def on_device(device: torch.device) -> AbstractContextManager:
    """Make ``device`` the current one, on which Triton launches kernels wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" and torch.cuda.is_available() else nullcontext()


def _runs(device: torch.device) -> bool:
    from moleflow.model.runtime.kernel_probe import doubled

    given = torch.arange(8.0, device=device)
    with on_device(device):
        return torch.equal(doubled(given), 2 * given)
