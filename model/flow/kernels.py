"""Triton kernels of prediction on a GPU, for ``moleflow.model.flow.stacked``; imported only where they can run.

Each works on the patches of a whole batch, ``(rows, channels)`` with a row per patch, image after image. Weights of
several products are stacked, and ``slots`` names those of each image, so that a batch of many products is one launch.
Where two images of different products meet within a tile of a matrix product, the tile is computed once for each.

A value depends on its own row only, and sums run in a fixed order: results do not depend on the rest of the batch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from moleflow.model.runtime.kernels import on_device

__all__ = ["Halves", "couple", "depthwise", "linear"]


class Tile(NamedTuple):
    """Rows, columns and depth of the tile of a matrix product, warps that compute it, and stages of its pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


WIDE, LARGE, SMALL = Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 4, 3), Tile(64, 64, 64, 4, 4)
"""Tiles of many rows and many outputs, of many rows, and of few: the fastest of those tried on an H100, with 64 images
and with one."""

FEW_ROWS = 4096
"""Up to so many rows the small tile keeps more of the GPU's processors busy."""

MANY_ROWS, MANY_OUTPUTS = 20_000, 512
"""From so many of both the wide tile is used; between 8 and 64 images nothing was measured."""


@triton.jit
def _linear_tile(  # type: ignore[no-untyped-def]
    x, weights, biases, found, slots, slot, row, column, total,
    per_image: tl.constexpr, x_stride: tl.constexpr, found_stride: tl.constexpr,
    inputs: tl.constexpr, outputs: tl.constexpr, relu: tl.constexpr, depth: tl.constexpr, columns: tl.constexpr,
    rows: tl.constexpr,
):  # fmt: skip
    """Compute the tile by the weights of ``slot``, and store the rows whose images have that slot."""
    valid_column = column < outputs
    k = tl.arange(0, depth)
    # Rows and columns beyond the end are read elsewhere and not stored, which is faster than masking them.
    x += tl.minimum(row, total - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    weights += slot.to(tl.int64) * (inputs * outputs) + (column % outputs)[None, :] * inputs + k[:, None]
    sums = tl.zeros((rows, columns), dtype=tl.float32)
    for start in range(0, inputs, depth):
        if inputs % depth == 0:
            given, weight = tl.load(x), tl.load(weights)
        else:
            given = tl.load(x, mask=(start + k < inputs)[None, :], other=0.0)
            weight = tl.load(weights, mask=(start + k < inputs)[:, None], other=0.0)
        sums = tl.dot(given, weight, sums)
        x += depth
        weights += depth
    bias = tl.load(biases + slot * outputs + column, mask=valid_column, other=0.0)
    sums += bias.to(tl.float32)[None, :]
    if relu:
        sums = tl.maximum(sums, 0.0)
    own = (row < total) & (tl.load(slots + row // per_image, mask=row < total, other=-1) == slot)
    tl.store(
        found + row.to(tl.int64)[:, None] * found_stride + column[None, :],
        sums.to(found.dtype.element_ty),
        mask=own[:, None] & valid_column[None, :],
    )


@triton.jit
def _linear(  # type: ignore[no-untyped-def]
    x, weights, biases, found, slots, total,
    per_image: tl.constexpr, x_stride: tl.constexpr, found_stride: tl.constexpr,
    inputs: tl.constexpr, outputs: tl.constexpr, relu: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share their rows, which then come from the cache.
    across: tl.constexpr = (outputs + columns - 1) // columns
    number = tl.program_id(0)
    first_row = (number // across) * rows
    row = first_row + tl.arange(0, rows)
    column = (number % across) * columns + tl.arange(0, columns)
    last_row = tl.minimum(first_row + rows, total) - 1
    slot = tl.load(slots + first_row // per_image)
    last_slot = tl.load(slots + last_row // per_image)
    _linear_tile(
        x, weights, biases, found, slots, slot, row, column, total,
        per_image, x_stride, found_stride, inputs, outputs, relu, depth, columns, rows,
    )  # fmt: skip
    if last_slot != slot:
        _linear_tile(
            x, weights, biases, found, slots, last_slot, row, column, total,
            per_image, x_stride, found_stride, inputs, outputs, relu, depth, columns, rows,
        )  # fmt: skip


def linear(
    x: torch.Tensor,
    weights: torch.Tensor,
    biases: torch.Tensor,
    slots: torch.Tensor,
    found: torch.Tensor,
    *,
    relu: bool = False,
    tile: Tile | None = None,
) -> None:
    """``x`` ``(rows, in)`` to ``found`` ``(rows, out)``: ``W x + b`` by each image's weights, then ReLU if asked.

    ``weights`` are ``(slots, out, in)``, ``biases`` ``(slots, out)``, ``slots`` ``(images,)`` int32. Inner strides are
    1; an image has at least as many rows as a tile. Sums are float32.
    """
    total, inputs = x.shape
    outputs = weights.shape[1]
    if tile is None:
        many = total >= MANY_ROWS and outputs >= MANY_OUTPUTS
        tile = SMALL if total <= FEW_ROWS else WIDE if many else LARGE
    grid = (triton.cdiv(total, tile.rows) * triton.cdiv(outputs, tile.columns),)
    with on_device(x.device):
        _linear[grid](
            x, weights, biases, found, slots, total,
            per_image=total // len(slots), x_stride=x.stride(0), found_stride=found.stride(0),
            inputs=inputs, outputs=outputs, relu=relu,
            rows=tile.rows, columns=tile.columns, depth=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


@triton.jit
def _depthwise(  # type: ignore[no-untyped-def]
    x, kernel, found, copy,
    height: tl.constexpr, width: tl.constexpr, channels: tl.constexpr, side: tl.constexpr,
    x_stride: tl.constexpr, found_stride: tl.constexpr, copy_stride: tl.constexpr, copied: tl.constexpr,
    span: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0)  # a row of the grid of one image
    image, i = position // height, position % height
    j = tl.arange(0, span)
    c = tl.program_id(1) * block + tl.arange(0, block)
    valid_c = c < channels
    sums = tl.zeros((span, block), dtype=tl.float32)
    for tap in tl.static_range(side * side):
        di = tap // side - side // 2
        dj = tap % side - side // 2
        inside = (j + dj >= 0) & (j + dj < width) & (i + di >= 0) & (i + di < height)
        row = (image * height + i + di) * width + j + dj
        given = tl.load(
            x + row.to(tl.int64)[:, None] * x_stride + c[None, :], mask=inside[:, None] & valid_c[None, :], other=0.0
        )
        weight = tl.load(kernel + tap * channels + c, mask=valid_c, other=0.0)
        sums += given.to(tl.float32) * weight.to(tl.float32)[None, :]
    row = (position * width + j).to(tl.int64)
    valid = (j < width)[:, None] & valid_c[None, :]
    tl.store(found + row[:, None] * found_stride + c[None, :], sums.to(found.dtype.element_ty), mask=valid)
    if copied > 0:
        valid = valid & (c < copied)[None, :]
        tl.store(copy + row[:, None] * copy_stride + c[None, :], sums.to(copy.dtype.element_ty), mask=valid)


def depthwise(
    x: torch.Tensor, kernel: torch.Tensor, grid: tuple[int, int], found: torch.Tensor, copy: torch.Tensor | None = None
) -> None:
    """Depthwise convolution of the patches ``x`` ``(rows, C)`` on grids of (height, width), zero padding, to ``found``.

    ``kernel`` is ``(k·k, C)``. ``copy`` ``(rows, c)`` gets the first c channels too, in its own type.
    """
    rows, channels = x.shape
    height, width = grid
    block = 64
    launch = (rows // width, triton.cdiv(channels, block))
    other = found if copy is None else copy
    with on_device(x.device):
        _depthwise[launch](
            x, kernel, found, other,
            height=height, width=width, channels=channels, side=round(len(kernel) ** 0.5),
            x_stride=x.stride(0), found_stride=found.stride(0), copy_stride=other.stride(0),
            copied=0 if copy is None else copy.shape[1],
            span=triton.next_power_of_2(width), block=block, num_warps=4,
        )  # fmt: skip


class Halves(NamedTuple):
    """Which half of the channels a coupling changes, and which one the next coupling reads."""

    changed: int
    next_read: int


@triton.jit
def _couple(  # type: ignore[no-untyped-def]
    x, scale, shift, sources, log_det, found, copy, nll, total, clamp, constant,
    channels: tl.constexpr, scale_stride: tl.constexpr, shift_stride: tl.constexpr, copy_stride: tl.constexpr,
    changed: tl.constexpr, next_read: tl.constexpr, last: tl.constexpr, permuted: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    to = tl.arange(0, block)  # output channels
    half: tl.constexpr = channels // 2
    valid_row, valid_to = row < total, to < channels
    source = tl.load(sources + to, mask=valid_to, other=0) if permuted else to
    is_changed = ((source >= half) if changed == 1 else (source < half)) & valid_to
    at = source - changed * half
    wide = row.to(tl.int64)[:, None]
    valid = valid_row[:, None] & valid_to[None, :]
    moved = valid_row[:, None] & is_changed[None, :]
    value = tl.load(x + wide * channels + source[None, :], mask=valid, other=0.0)
    s = tl.load(scale + wide * scale_stride + at[None, :], mask=moved, other=0.0).to(tl.float32)
    t = tl.load(shift + wide * shift_stride + at[None, :], mask=moved, other=0.0).to(tl.float32)
    log_scale = clamp * (1.0 - 2.0 / (tl.exp(2.0 * s) + 1.0))  # c·tanh(s); 0 where nothing was loaded
    value = value * tl.exp(log_scale) + t
    total_log_det = tl.load(log_det + row, mask=valid_row, other=0.0) + tl.sum(log_scale, 1)
    if last:
        tl.store(nll + row, 0.5 * tl.sum(value * value, 1) + constant - total_log_det, mask=valid_row)
    else:
        tl.store(log_det + row, total_log_det, mask=valid_row)
        tl.store(found + wide * channels + to[None, :], value, mask=valid)
        first: tl.constexpr = next_read * half
        read = valid & ((to >= first) & (to < first + half))[None, :]
        tl.store(copy + wide * copy_stride + (to - first)[None, :], value.to(copy.dtype.element_ty), mask=read)


def couple(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    log_det: torch.Tensor,
    found: torch.Tensor,
    copy: torch.Tensor,
    halves: Halves,
    clamp: float,
    sources: torch.Tensor | None = None,
    nll: tuple[torch.Tensor, float] | None = None,
) -> None:
    """Change one half of ``x`` ``(rows, D)`` float32 to ``x·exp(c·tanh(s)) + t``, and add to ``log_det`` ``(rows,)``.

    The result goes to ``found``, another tensor, with output channel i from channel ``sources[i]``; and the half that
    the next coupling reads to ``copy`` ``(rows, D/2)`` in the type of the products. For the last coupling, ``nll`` is
    where the negative log-likelihoods ``(rows,)`` go and a constant to add to them; nothing else is stored.
    """
    total, channels = x.shape
    rows = 4
    where, constant = (log_det, 0.0) if nll is None else nll
    with on_device(x.device):
        _couple[(triton.cdiv(total, rows),)](
            x, scale, shift, log_det if sources is None else sources, log_det, found, copy, where,
            total, clamp, constant,
            channels=channels, scale_stride=scale.stride(0), shift_stride=shift.stride(0), copy_stride=copy.stride(0),
            changed=halves.changed, next_read=halves.next_read, last=nll is not None, permuted=sources is not None,
            rows=rows, block=triton.next_power_of_2(channels), num_warps=4,
        )  # fmt: skip
