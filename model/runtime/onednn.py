"""Frozen linear layers and convolutions that do what follows them in the same pass: bias, residual, activation.

On a CPU a layer's product is often quicker than the passes over its output that follow it, so oneDNN's fused operators
take them along, with the weights kept in oneDNN's own order. PyTorch has these operators for its compiler; whether
they are there, and agree with the plain ones, is tried once. Everywhere else the plain operators do the same.
"""

import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Activation", "FusedConv", "FusedLinear"]

Activation = Literal["none", "relu", "relu6"]
"""What follows a layer in the same pass."""

_POST_OPERATIONS: dict[Activation, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
"""Names and numbers by which oneDNN's operators know an activation."""

_ROWS = 784
"""Rows of the product for which a linear weight is ordered: the patches of one image of MAIN. Others may come."""

_TRIED_WITHIN = 0.05
"""How far apart fused and plain operators may be in the trial, of values about 1: bf16 has 2⁻⁸ of each."""


class FusedLinear(nn.Module):
    """``activation(W x + b)`` for ``x`` of ``(..., in)``, computed and returned in ``dtype``; never learns.

    ``weight`` is ``(out, in)``, ``bias`` ``(out,)`` or ``None``; both are copied.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, activation: Activation = "none"
    ) -> None:
        super().__init__()
        self.dtype, self.activation = dtype, activation
        weight = weight.detach().to(dtype, copy=True)
        self._fused = weight.device.type == "cpu" and _operators_agree(dtype)
        if self._fused:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype, copy=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` of any type to ``(..., out)`` of the layer's."""
        x = x.to(self.dtype)
        if self._fused:
            name, numbers = _POST_OPERATIONS[self.activation]
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, numbers, "")
        return _activate(F.linear(x, self.weight, self.bias), self.activation)


class FusedConv(nn.Module):
    """``activation(conv(x) + other)``, computed and returned in ``dtype``; never learns.

    ``kernel`` is ``(out, in / groups, k, k)``, ``bias`` ``(out,)`` or ``None``; both are copied. ``geometry`` has
    ``stride``, ``padding``, ``dilation`` and ``groups`` as ``nn.Conv2d`` has them.
    """

    kernel: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.dtype, self.activation = dtype, activation
        self._stride, self._padding, self._dilation, self._groups = stride, padding, dilation, groups
        kernel = kernel.detach().to(dtype, copy=True).contiguous(memory_format=torch.channels_last)
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype, copy=True))

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, in, H, W)`` of any type, and what to add to the convolution, to ``(B, out, H', W')``."""
        x = x.to(self.dtype)
        if x.device.type == "cpu" and _operators_agree(self.dtype):
            return self._fused(x, other)
        y = F.conv2d(x, self.kernel, self.bias, self._stride, self._padding, self._dilation, self._groups)
        return _activate(y if other is None else y + other, self.activation)

    def _fused(self, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        geometry: tuple[Any, ...] = (self._padding, self._stride, self._dilation, self._groups)
        kernel = self.kernel
        if not kernel.is_mkldnn:
            # The best order depends on the image's size; always for one image, so that it does not depend on the
            # batch that happens to come first. Two threads may both do it, to the same end.
            kernel = torch.ops.mkldnn._reorder_convolution_weight(kernel, *geometry, [1, *x.shape[1:]])
            self.kernel = kernel
        name, numbers = _POST_OPERATIONS[self.activation]
        operator = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return operator(x, kernel, self.bias, *geometry, name, numbers, "")
        # PyTorch itself leaves oneDNN where the groups of a convolution meet a sum.
        if self._groups == 1 and self.activation != "relu6" and other.shape == self._shape_of_output(x):
            after = None if name == "none" else name
            other = other.to(self.dtype)
            return operator.binary(x, other, kernel, self.bias, *geometry, "add", None, after, [], None)
        return _activate(operator(x, kernel, self.bias, *geometry, "none", [], "") + other, self.activation)

    def _shape_of_output(self, x: torch.Tensor) -> tuple[int, ...]:
        sides = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(
                x.shape[2:], self.kernel.shape[2:], self._stride, self._padding, self._dilation, strict=True
            )
        )
        return x.shape[0], self.kernel.shape[0], *sides


def _activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "none":
        return x
    return x.relu_() if activation == "relu" else F.hardtanh_(x, 0.0, 6.0)


@functools.cache
@torch.autocast("cpu", enabled=False)  # whatever the first caller is doing
def _operators_agree(dtype: torch.dtype) -> bool:
    """Whether PyTorch and this processor have the fused operators for ``dtype``, and they compute what is meant."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, kernel = (torch.randn(*shape, generator=generator) for shape in ((2, 32, 5, 5), (32, 32, 3, 3)))
    kernel, bias = kernel / 17, torch.full((32,), 0.1)
    geometry: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1)
    rows, weight = x.flatten(2)[:, :, 0], kernel[:, :, 1, 1]
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), _ROWS)
        found = torch.ops.mkldnn._linear_pointwise(rows.to(dtype), packed, bias.to(dtype), "relu", [], "")
        packed = torch.ops.mkldnn._reorder_convolution_weight(kernel.to(dtype), *geometry, [1, *x.shape[1:]])
        given = x.to(dtype), x.to(dtype), packed, bias.to(dtype)
        residual = torch.ops.mkldnn._convolution_pointwise.binary(*given, *geometry, "add", None, "relu", [], None)
    except (AttributeError, RuntimeError, TypeError):  # an operator is missing, or takes other arguments
        return False
    expected = F.linear(rows, weight, bias).relu(), (F.conv2d(x, kernel, bias, padding=1) + x).relu()
    return all(
        torch.allclose(one.float(), other, rtol=_TRIED_WITHIN, atol=_TRIED_WITHIN)
        for one, other in zip((found, residual), expected, strict=True)
    )
