"""Frozen linear layers and convolutions with fused bias, residual addition and activation, by oneDNN on a CPU and
cuDNN on a GPU.

On a CPU the elementwise passes after a layer often cost more than its matrix product. oneDNN's fused operators avoid
them, with weights prepacked in oneDNN's layout. PyTorch has these operators for its compiler; they are tested once
against the plain ones, which are used everywhere else.
"""

import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.runtime.faults import is_device_lost, is_out_of_memory

__all__ = ["Activation", "FusedConv", "FusedLinear"]

Activation = Literal["none", "relu", "relu6"]
"""The fused activation."""

_POST_OPERATIONS: dict[Activation, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
"""oneDNN's name and parameters of each activation."""

_ROWS = 784
"""Number of rows that linear weights are prepacked for: the patches of one image of ``main``. Any number works."""

_TOLERANCE = 0.05
"""Tolerance of the test of fused against plain operators, for values near 1; bf16 rounds to 2⁻⁸."""


class FusedLinear(nn.Module):
    """``activation(W x + b)`` for ``x`` ``(..., in)``, computed and returned in ``dtype``; not trainable.

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

    def plain_weight(self) -> torch.Tensor:
        """A copy of the weight ``(out, in)`` in no private layout."""
        return self.weight.to_dense().contiguous() if self.weight.is_mkldnn else self.weight.clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` of any type to ``(..., out)`` of the layer's type."""
        x = x.to(self.dtype)
        if self._fused:
            name, numbers = _POST_OPERATIONS[self.activation]
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, numbers, "")
        return _activate(F.linear(x, self.weight, self.bias), self.activation)


class FusedConv(nn.Module):
    """``activation(conv(x) + other)``, computed and returned in ``dtype``; not trainable.

    ``kernel`` is ``(out, in / groups, k, k)``, ``bias`` ``(out,)`` or ``None``; both are copied. Other arguments
    as in ``nn.Conv2d``.
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
        self._cudnn_refused = False
        kernel = kernel.detach().to(dtype, copy=True).contiguous(memory_format=torch.channels_last)
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype, copy=True))

    def plain_kernel(self) -> torch.Tensor:
        """A copy of the kernel ``(out, in / groups, k, k)`` in no private layout."""
        kernel = self.kernel.to_dense() if self.kernel.is_mkldnn else self.kernel
        return kernel.clone(memory_format=torch.contiguous_format)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, in, H, W)`` of any type, and an optional summand, to ``(B, out, H', W')``."""
        x = x.to(self.dtype)
        if x.device.type == "cpu" and _operators_agree(self.dtype):
            return self._fused(x, other)
        if x.device.type == "cuda" and self.activation == "relu" and self.bias is not None and self._groups == 1:
            fused = self._fused_by_cudnn(x, other)
            if fused is not None:
                return fused
        y = F.conv2d(x, self.kernel, self.bias, self._stride, self._padding, self._dilation, self._groups)
        return _activate(y if other is None else y + other, self.activation)

    def _fused(self, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        geometry: tuple[Any, ...] = (self._padding, self._stride, self._dilation, self._groups)
        kernel = self.kernel
        if not kernel.is_mkldnn:
            # The best layout depends on the input size. Always for a batch of one, so that the first batch does not
            # decide. A race between threads is harmless.
            kernel = torch.ops.mkldnn._reorder_convolution_weight(kernel, *geometry, [1, *x.shape[1:]])
            self.kernel = kernel
        name, numbers = _POST_OPERATIONS[self.activation]
        operator = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return operator(x, kernel, self.bias, *geometry, name, numbers, "")
        # PyTorch's operator does not fuse a sum into a grouped convolution.
        if self._groups == 1 and self.activation != "relu6" and other.shape == self._shape_of_output(x):
            after = None if name == "none" else name
            other = other.to(self.dtype)
            return operator.binary(x, other, kernel, self.bias, *geometry, "add", None, after, [], None)
        return _activate(operator(x, kernel, self.bias, *geometry, "none", [], "") + other, self.activation)

    def _fused_by_cudnn(self, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor | None:
        """Convolution, bias, sum and ReLU in one pass; ``None`` where cuDNN does not do it."""
        if self._cudnn_refused or not _cudnn_agrees(self.dtype, x.device):
            return None
        geometry = self._stride, self._padding, self._dilation, self._groups
        try:
            if other is None:
                return torch.cudnn_convolution_relu(x, self.kernel, self.bias, *geometry)
            if other.shape == self._shape_of_output(x):
                return torch.cudnn_convolution_add_relu(x, self.kernel, other.to(self.dtype), 1.0, self.bias, *geometry)
        except RuntimeError as error:
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            self._cudnn_refused = True  # not every geometry has a fused form
        return None

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
def _cudnn_agrees(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether cuDNN's fused convolutions exist for ``dtype``, and agree with the plain ones.

    In float32 they would use TF32 where the plain ones do not.
    """
    if dtype == torch.float32 or not torch.cuda.is_available() or not torch.backends.cudnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, kernel = (torch.randn(*shape, generator=generator) for shape in ((2, 32, 5, 5), (32, 32, 3, 3)))
    bias = torch.full((32,), 0.1)
    x, kernel, bias = (value.to(device, dtype) for value in (x, kernel / 17, bias))
    x, kernel = (value.contiguous(memory_format=torch.channels_last) for value in (x, kernel))
    geometry: tuple[Any, ...] = ((1, 1), (1, 1), (1, 1), 1)
    try:
        found = (
            torch.cudnn_convolution_relu(x, kernel, bias, *geometry),
            torch.cudnn_convolution_add_relu(x, kernel, x, 1.0, bias, *geometry),
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
    plain = F.conv2d(x, kernel, bias, padding=1)
    expected = plain.relu(), (plain + x).relu()
    return all(
        torch.allclose(one.float(), other.float(), rtol=_TOLERANCE, atol=_TOLERANCE)
        for one, other in zip(found, expected, strict=True)
    )


@functools.cache
@torch.autocast("cpu", enabled=False)  # the cached result must not depend on the first caller's mode
def _operators_agree(dtype: torch.dtype) -> bool:
    """Whether the fused operators exist for ``dtype`` here, and agree with the plain ones."""
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
    except (AttributeError, RuntimeError, TypeError):  # an operator is missing, or has another signature
        return False
    expected = F.linear(rows, weight, bias).relu(), (F.conv2d(x, kernel, bias, padding=1) + x).relu()
    return all(
        torch.allclose(one.float(), other, rtol=_TOLERANCE, atol=_TOLERANCE)
        for one, other in zip((found, residual), expected, strict=True)
    )
