"""What a failure of the model means for the next image: told by the error alone, without PyTorch at hand.

PyTorch has a type for a lack of memory on the device, but none for that of the CPU's allocator, of cuBLAS or of cuDNN,
and none that tells a lost device from an error that passes. All of them have had the same words for many versions.
"""

import re

__all__ = ["is_device_lost", "is_out_of_memory"]

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can(?:no|')t allocate memory|bad_alloc|STATUS_ALLOC_FAILED|failed to allocate|unable to allocate",
    re.IGNORECASE,
)
"""What CUDA, HIP and MPS, PyTorch's allocator for the CPU, C++, cuBLAS and cuDNN, and NumPy say."""

_DEVICE_LOST = re.compile(
    r"device-side assert|illegal memory access|unspecified launch failure|launch timed out|illegal instruction"
    r"|misaligned address|invalid program counter|hardware stack error|operation not supported on global/shared"
    r"|uncorrectable (?:ECC|NVLink) error|invalid access of peer GPU memory|tensor memory not completely freed"
    r"|context is destroyed|invalid device context|GPU is lost|no CUDA-capable device"
    r"|CUDA-capable device\(s\) is/are busy or unavailable",
    re.IGNORECASE,
)
"""CUDA errors after which every call in the process fails alike, until it is started anew: those of which the CUDA
runtime's list of error types says so, and the loss of the device or its context."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at once might have succeeded."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _said(error, _OUT_OF_MEMORY))


def is_device_lost(error: BaseException) -> bool:
    """Whether nothing but a new process can use the device again."""
    return isinstance(error, RuntimeError) and _said(error, _DEVICE_LOST)


def _said(error: BaseException, words: re.Pattern[str]) -> bool:
    try:
        return words.search(str(error)) is not None
    except Exception:  # an error that cannot even be printed says nothing
        return False
