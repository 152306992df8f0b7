"""Triton kernels of depthwise convolutions in a training step on a GPU; imported only where they can run.

PyTorch's own are slow for channels-last values in half precision, their gradients most of all. Values are
``(rows, channels)`` with a row per patch, image after image; the inner stride is 1. Sums are float32, in a fixed order.
"""

import torch
import triton
import triton.language as tl

__all__ = ["convolve", "kernel_gradient", "part_count"]

_ROWS_OF_PATCHES = 8
"""Rows of patches in each part of the gradient of a kernel."""


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]
    x, kernel, found, first, second, height, width,
    channels: tl.constexpr, side: tl.constexpr, flipped: tl.constexpr, adding: tl.constexpr,
    x_stride: tl.constexpr, found_stride: tl.constexpr, first_stride: tl.constexpr, second_stride: tl.constexpr,
    span: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0)  # a row of patches of one image
    image = position // height
    i = position % height
    j = tl.program_id(1) * span + tl.arange(0, span)
    c = tl.program_id(2) * block + tl.arange(0, block)
    valid_c = c < channels
    valid = (j < width)[:, None] & valid_c[None, :]
    row = (position * width + j).to(tl.int64)[:, None]
    sums = tl.zeros((span, block), dtype=tl.float32)
    for di in tl.static_range(side):
        for dj in tl.static_range(side):
            up = i + di - side // 2
            across = j + dj - side // 2
            inside = (up >= 0) & (up < height) & (across >= 0) & (across < width)
            other_row = ((image * height + up) * width + across).to(tl.int64)[:, None]
            given = tl.load(x + other_row * x_stride + c[None, :], mask=inside[:, None] & valid_c[None, :], other=0.0)
            tap = side * side - 1 - (di * side + dj) if flipped else di * side + dj
            weight = tl.load(kernel + tap * channels + c, mask=valid_c, other=0.0)
            sums += given.to(tl.float32) * weight.to(tl.float32)[None, :]
    if adding:
        sums += tl.load(found + row * found_stride + c[None, :], mask=valid, other=0.0).to(tl.float32)
        sums += tl.load(first + row * first_stride + c[None, :], mask=valid, other=0.0).to(tl.float32)
        sums += tl.load(second + row * second_stride + c[None, :], mask=valid, other=0.0).to(tl.float32)
    tl.store(found + row * found_stride + c[None, :], sums.to(found.dtype.element_ty), mask=valid)


def convolve(
    x: torch.Tensor,
    kernel: torch.Tensor | None,
    grid: tuple[int, int],
    found: torch.Tensor,
    *,
    flipped: bool = False,
    adding: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Depthwise convolution of ``x`` ``(rows, C)`` on grids of (height, width) patches, zero padding, to ``found``.

    ``kernel`` is ``(k·k, C)``; ``flipped`` turns it by half a turn, which gives the gradient of the input. With
    ``adding``, two tensors ``(rows, C)``, the convolution and both are added to ``found``; ``kernel`` may be ``None``
    then, for no convolution.
    """
    rows, channels = x.shape
    height, width = grid
    span, block = 32, 64
    first, second = (found, found) if adding is None else adding
    side = 0 if kernel is None else round(len(kernel) ** 0.5)
    _convolve[(rows // width, triton.cdiv(width, span), triton.cdiv(channels, block))](
        x, found if kernel is None else kernel, found, first, second, height, width,
        channels=channels, side=side, flipped=flipped, adding=adding is not None,
        x_stride=x.stride(0), found_stride=found.stride(0),
        first_stride=first.stride(0), second_stride=second.stride(0), span=span, block=block, num_warps=8,
    )  # fmt: skip


@triton.jit
def _kernel_gradient(  # type: ignore[no-untyped-def]
    x, grad, parts, height, width, positions,
    channels: tl.constexpr, side: tl.constexpr, x_stride: tl.constexpr, grad_stride: tl.constexpr,
    rounds: tl.constexpr, taps: tl.constexpr, span: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    di = tl.program_id(1)
    c = tl.program_id(2) * block + tl.arange(0, block)
    dj = tl.arange(0, taps)
    valid_c = c < channels
    sums = tl.zeros((taps, span, block), dtype=tl.float32)
    for step in range(rounds):
        position = part * rounds + step
        up = position % height + di - side // 2
        usable = (position < positions) & (up >= 0) & (up < height)
        for first in range(0, width, span):
            j = first + tl.arange(0, span)
            row = (position * width + j).to(tl.int64)
            valid = (usable & (j < width))[:, None] & valid_c[None, :]
            slope = tl.load(grad + row[:, None] * grad_stride + c[None, :], mask=valid, other=0.0).to(tl.float32)
            across = j[None, :] + dj[:, None] - side // 2
            inside = usable & (dj < side)[:, None] & (across >= 0) & (across < width)
            other = ((position + di - side // 2) * width + across).to(tl.int64)
            given = tl.load(
                x + other[:, :, None] * x_stride + c[None, None, :],
                mask=inside[:, :, None] & valid_c[None, None, :],
                other=0.0,
            )
            sums += given.to(tl.float32) * slope[None, :, :]
    there = ((part * side + di) * side + dj).to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(parts + there, tl.sum(sums, 1), mask=(dj < side)[:, None] & valid_c[None, :])


def part_count(rows: int, grid: tuple[int, int]) -> int:
    """The number of parts in which ``kernel_gradient`` of so many rows comes."""
    return triton.cdiv(rows // grid[1], _ROWS_OF_PATCHES)


def kernel_gradient(x: torch.Tensor, grad: torch.Tensor, grid: tuple[int, int], parts: torch.Tensor) -> None:
    """The gradient of ``convolve``'s kernel in ``parts`` ``(part_count, k·k, C)`` float32, to be added up.

    ``x`` and ``grad``, that of the output, are ``(rows, C)``.
    """
    rows, channels = x.shape
    height, width = grid
    side, block = round(parts.shape[1] ** 0.5), 16
    _kernel_gradient[(len(parts), side, triton.cdiv(channels, block))](
        x, grad, parts, height, width, rows // width,
        channels=channels, side=side, x_stride=x.stride(0), grad_stride=grad.stride(0), rounds=_ROWS_OF_PATCHES,
        taps=triton.next_power_of_2(side), span=32, block=block, num_warps=4,
    )  # fmt: skip
