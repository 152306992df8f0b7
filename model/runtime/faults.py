"""Classification of runtime errors, without importing PyTorch.

PyTorch has an exception type for CUDA out-of-memory only, none for the CPU allocator, cuBLAS, cuDNN or a lost device.
Their messages have been stable over many versions.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["freeing_memory", "is_device_lost", "is_out_of_memory"]

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can(?:no|')t allocate memory|bad_alloc|STATUS_ALLOC_FAILED|failed to allocate|unable to allocate",
    re.IGNORECASE,
)
"""Messages of CUDA, HIP and MPS, PyTorch's CPU allocator, C++, cuBLAS, cuDNN and NumPy."""

_DEVICE_LOST = re.compile(
    r"device-side assert|illegal memory access|unspecified launch failure|launch timed out|illegal instruction"
    r"|misaligned address|invalid program counter|hardware stack error|operation not supported on global/shared"
    r"|uncorrectable (?:ECC|NVLink) error|invalid access of peer GPU memory|tensor memory not completely freed"
    r"|context is destroyed|invalid device context|GPU is lost|no CUDA-capable device"
    r"|CUDA-capable device\(s\) is/are busy or unavailable",
    re.IGNORECASE,
)
"""CUDA errors after which every call fails until the process restarts (by the CUDA runtime's list of error types), and
loss of the device or its context."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might have succeeded."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _said(error, _OUT_OF_MEMORY))


@contextmanager
def freeing_memory(free: Callable[[], None]) -> Iterator[None]:
    """Call ``free`` when the memory runs out inside, and let the error pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            free()
        raise


def is_device_lost(error: BaseException) -> bool:
    """Whether only a new process can use the device again."""
    return isinstance(error, RuntimeError) and _said(error, _DEVICE_LOST)


def _said(error: BaseException, words: re.Pattern[str]) -> bool:
    try:
        return words.search(str(error)) is not None
    except Exception:  # its own __str__ fails
        return False
