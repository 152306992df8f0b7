"""Numbers that no arithmetic comes well out of. They are looked for whenever a section is read or written.

One that is not finite would spread through every product of matrices, and end as a verdict on nothing; so would the
logarithm or the root of one that cannot be negative.
"""

import re
from collections.abc import Mapping

import torch

__all__ = ["fault_of", "not_finite"]

_POSITIVE = re.compile(r"prototype\.(floor|variances)|(base\.)?blocks\.\d+\.channel_scale")
"""Names of tensors that are divided by, or whose logarithm is taken."""

_NOT_NEGATIVE = re.compile(r".*\brunning_var")
"""Names of tensors whose root is taken."""

_PERMUTATION = re.compile(r"(base\.)?blocks\.\d+\.permutation")
"""Names of tensors that are places in another: on a GPU a wrong one ends the process."""


def fault_of(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with the numbers of a section, in words; nothing where they are sound."""
    name = not_finite(tensors)
    if name is not None:
        return f"tensor {name!r} holds numbers that are not finite"
    for name, value in tensors.items():
        if not value.numel():
            continue
        if _POSITIVE.fullmatch(name) and not value.min() > 0:
            return f"tensor {name!r} holds numbers that are not above 0"
        if _NOT_NEGATIVE.fullmatch(name) and value.min() < 0:
            return f"tensor {name!r} holds negative numbers"
        if _PERMUTATION.fullmatch(name) and not torch.equal(value.sort().values.cpu(), torch.arange(len(value))):
            return f"tensor {name!r} is no permutation"
    return None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; nothing where all numbers are finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            # One pass without a copy: a NaN is both the least and the greatest, and so is found as an infinity is.
            least, greatest = torch.aminmax(value.detach())
            if not (least.isfinite() and greatest.isfinite()):
                return name
    return None
