"""A Triton kernel for patch embeddings on a GPU; imported only where it can run.

As a grouped convolution the fixed pooling has two to four channels a group, for which libraries have no fast way. Here
a block of outputs is a small dense product for each position of the neighbourhood; its weights, 1 inside an output's
window and 0 elsewhere, are made on the fly.
"""

import torch
import triton
import triton.language as tl

from moleflow.model.runtime.kernels import on_device

__all__ = ["pool_windows"]

MOST_CHANNELS = 64
"""Most channels that a block of outputs should read: its product then fits into the registers of four warps."""

LEAST_OUTPUTS = 16
"""Fewest outputs of a block, which a matrix product needs."""


@triton.jit
def _pool_windows(  # type: ignore[no-untyped-def]
    stage, starts, ends, found, gain, total,
    height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr, outputs: tl.constexpr, side: tl.constexpr,
    rows: tl.constexpr, reach: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    i, j = (row // width) % height, row % width
    output = tl.program_id(1) * block + tl.arange(0, block)
    valid_output = output < outputs
    start = tl.load(starts + output, mask=valid_output, other=0)
    end = tl.load(ends + output, mask=valid_output, other=0)
    first = tl.load(starts + tl.program_id(1) * block) // (side * side)
    channel = first + tl.arange(0, reach)
    sums = tl.zeros((rows, block), dtype=tl.float32)
    for tap in range(side * side):
        di = tap // side - side // 2
        dj = tap % side - side // 2
        inside = (row < total) & (i + di >= 0) & (i + di < height) & (j + dj >= 0) & (j + dj < width)
        at = (row + di * width + dj).to(tl.int64)
        given = tl.load(
            stage + at[:, None] * channels + channel[None, :],
            mask=inside[:, None] & (channel < channels)[None, :],
            other=0.0,
        )
        value = channel * (side * side) + tap  # its number in the flattened window
        weight = ((value[:, None] >= start[None, :]) & (value[:, None] < end[None, :])).to(given.dtype)
        sums = tl.dot(given, weight, sums)
    mean = sums * (gain / tl.maximum(end - start, 1).to(tl.float32))[None, :]
    tl.store(
        found + row.to(tl.int64)[:, None] * outputs + output[None, :],
        mean.to(found.dtype.element_ty),
        mask=(row < total)[:, None] & valid_output[None, :],
    )


def pool_windows(stage: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, side: int, gain: float) -> torch.Tensor:
    """Means over windows of each patch's flattened ``side`` × ``side`` neighbourhood, times ``gain``.

    ``stage`` is ``(B, C, H, W)``, channels last in memory; window i has the values from ``starts[i]`` to before
    ``ends[i]``, int32 ``(D,)``, as adaptive average pooling has them. The result is ``(B, H, W, D)`` in the type of
    ``stage``.
    """
    batch, channels, height, width = stage.shape
    outputs, total = len(starts), batch * height * width
    found = stage.new_empty((batch, height, width, outputs))
    block = 64
    while block > LEAST_OUTPUTS and _reach(block, channels, outputs, side) > MOST_CHANNELS:
        block //= 2
    reach = max(LEAST_OUTPUTS, triton.next_power_of_2(_reach(block, channels, outputs, side)))
    rows = 64
    with on_device(stage.device):
        _pool_windows[(triton.cdiv(total, rows), triton.cdiv(outputs, block))](
            stage.permute(0, 2, 3, 1).contiguous(), starts, ends, found, gain, total,
            height=height, width=width, channels=channels, outputs=outputs, side=side,
            rows=rows, reach=reach, block=block, num_warps=4 if reach <= MOST_CHANNELS else 8,
        )  # fmt: skip
    return found


def _reach(block: int, channels: int, outputs: int, side: int) -> int:
    """Most channels that ``block`` neighbouring windows touch."""
    longest = -(-side * side * channels // outputs) + 1
    values = side * side * channels * block // outputs + 1 + longest
    return values // (side * side) + 2
