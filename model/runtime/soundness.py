"""Sanity checks of stored tensors, run whenever a section is read or written.

A value that is not finite, or the logarithm or root of an invalid one, would propagate into every score.
"""

import re
from collections.abc import Mapping

import torch

__all__ = ["fault_of", "not_finite"]

_POSITIVE = re.compile(
    r"prototype\.(floor|variances)|(base\.)?blocks\.\d+\.channel_scale|fusion\.(flow|memory)_deviation"
)
"""Tensors used as divisors or in logarithms."""

_NOT_NEGATIVE = re.compile(r".*\brunning_var|fusion\.gate")
"""Tensors whose square root is taken, and weights."""

_PERMUTATION = re.compile(r"(base\.)?blocks\.\d+\.permutation")
"""Index tensors: an invalid index on a GPU breaks the CUDA context."""


def fault_of(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with the values of a section, or ``None``."""
    name = not_finite(tensors)
    if name is not None:
        return f"tensor {name!r} has values that are not finite"
    for name, value in tensors.items():
        if not value.numel():
            continue
        if _POSITIVE.fullmatch(name) and not value.min() > 0:
            return f"tensor {name!r} has values that are not positive"
        if _NOT_NEGATIVE.fullmatch(name) and value.min() < 0:
            return f"tensor {name!r} has negative values"
        if _PERMUTATION.fullmatch(name) and not torch.equal(value.sort().values.cpu(), torch.arange(len(value))):
            return f"tensor {name!r} is not a permutation"
    return None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity, or ``None``."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            # One pass without a copy; aminmax propagates NaN.
            lowest, highest = torch.aminmax(value.detach())
            if not (lowest.isfinite() and highest.isfinite()):
                return name
    return None
