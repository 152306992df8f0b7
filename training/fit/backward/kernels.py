"""Triton kernels of a training step's elementwise passes on a GPU; imported only where they can run.

All work on the patches of a whole batch, ``(rows, channels)`` with a row per patch, image after image. Sums run in a
fixed order and without atomics, in float32: the same inputs give the same bits. Sums over rows, which are gradients of
biases, are left in parts, ``SUMMED_ROWS`` rows each, so that the parts of all layers are added up in one launch.

Depthwise convolutions are in ``moleflow.training.fit.backward.convolution``.
"""

import torch
import triton
import triton.language as tl

from moleflow.model.flow.blocks import Coupling

__all__ = ["SUMMED_ROWS", "couple", "couple_backward", "likelihood", "relu_backward"]

SUMMED_ROWS = 16
"""Rows in each part of a sum over rows: with fewer the parts are many, with more the programs are too few."""


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    """Accurate near zero too, where the formula with exponentials loses digits."""
    square = x * x
    series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    formula = (1.0 - decay) / (1.0 + decay)
    return tl.where(size < 0.1, series, tl.where(x < 0.0, -formula, formula))


@triton.jit
def _couple(  # type: ignore[no-untyped-def]
    x, scale, shift, sources, factors, log_det, found, copy, total, clamp,
    channels: tl.constexpr, start: tl.constexpr, copy_start: tl.constexpr, copy_stride: tl.constexpr,
    permuted: tl.constexpr, copied: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    half: tl.constexpr = channels // 2
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    to = tl.arange(0, block)  # channels of the output
    valid_row = row < total
    valid_to = to < channels
    if permuted:
        source = tl.load(sources + to, mask=valid_to, other=0)
        factor = tl.load(factors + source, mask=valid_to, other=1.0)
    else:
        source = to
        factor = tl.full((block,), 1.0, dtype=tl.float32)
    at = source - start
    wide = row.to(tl.int64)[:, None]
    valid = valid_row[:, None] & valid_to[None, :]
    changed = valid & ((at >= 0) & (at < half))[None, :]
    value = tl.load(x + wide * channels + source[None, :], mask=valid, other=0.0)
    s = tl.load(scale + wide * half + at[None, :], mask=changed, other=0.0).to(tl.float32)
    t = tl.load(shift + wide * half + at[None, :], mask=changed, other=0.0).to(tl.float32)
    log_scale = clamp * _tanh(s)  # zero where nothing was loaded
    value = (value * tl.exp(log_scale) + t) * factor[None, :]
    before = tl.load(log_det + row, mask=valid_row, other=0.0)
    tl.store(log_det + row, before + tl.sum(log_scale, 1) + tl.sum(tl.log(factor), 0), mask=valid_row)
    tl.store(found + wide * channels + to[None, :], value, mask=valid)
    if copied:
        read = valid & ((to >= copy_start) & (to < copy_start + half))[None, :]
        there = copy + wide * copy_stride + (to - copy_start)[None, :]
        tl.store(there, value.to(copy.dtype.element_ty), mask=read)


def couple(
    coupling: Coupling,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    log_det: torch.Tensor,
    start: int,
    mixing: tuple[torch.Tensor, torch.Tensor] | None,
    copy: torch.Tensor | None,
    copy_start: int,
) -> torch.Tensor:
    """The output ``(rows, D)`` of a coupling that changes the ``D/2`` channels of ``x`` from ``start``.

    ``scale`` and ``shift`` are ``(rows, D/2)``, contiguous, with slope and gain included. ``log_det`` ``(rows,)``
    is added to in place. ``mixing`` are the channels ``(D,)`` that the outputs come from, and the fixed scale ``(D,)``
    of each channel before. ``copy`` ``(rows, D/2)`` gets the half of the output from ``copy_start``, in its own type.
    """
    total, channels = x.shape
    found = torch.empty_like(x)
    sources, factors = (log_det, log_det) if mixing is None else mixing
    where = found if copy is None else copy
    rows = 4
    _couple[(triton.cdiv(total, rows),)](
        x, scale, shift, sources, factors, log_det, found, where, total, coupling.clamp,
        channels=channels, start=start, copy_start=copy_start, copy_stride=where.stride(0),
        permuted=mixing is not None, copied=copy is not None,
        rows=rows, block=triton.next_power_of_2(channels), num_warps=4,
    )  # fmt: skip
    return found


@triton.jit
def _couple_backward(  # type: ignore[no-untyped-def]
    grad, grad_log_det, x, scale, targets, factors, found, grad_scale, grad_shift, scale_sums, shift_sums, total, clamp,
    channels: tl.constexpr, start: tl.constexpr, permuted: tl.constexpr,
    rounds: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    half: tl.constexpr = channels // 2
    part = tl.program_id(0)
    k = tl.arange(0, block)
    valid_k = k < half
    changed = start + k  # input channels of either half
    kept = (half - start) + k
    if permuted:
        changed_to = tl.load(targets + changed, mask=valid_k, other=0)
        kept_to = tl.load(targets + kept, mask=valid_k, other=0)
        changed_factor = tl.load(factors + changed, mask=valid_k, other=1.0)
        kept_factor = tl.load(factors + kept, mask=valid_k, other=1.0)
    else:
        changed_to = changed
        kept_to = kept
        changed_factor = tl.full((block,), 1.0, dtype=tl.float32)
        kept_factor = tl.full((block,), 1.0, dtype=tl.float32)
    sum_scale = tl.zeros((rows, block), dtype=tl.float32)
    sum_shift = tl.zeros((rows, block), dtype=tl.float32)
    for step in range(rounds):
        row = (part * rounds + step) * rows + tl.arange(0, rows)
        valid_row = row < total
        valid = valid_row[:, None] & valid_k[None, :]
        wide = row.to(tl.int64)[:, None] * channels
        narrow = row.to(tl.int64)[:, None] * half + k[None, :]
        of_log_det = tl.load(grad_log_det + row, mask=valid_row, other=0.0)
        of_kept = tl.load(grad + wide + kept_to[None, :], mask=valid, other=0.0) * kept_factor[None, :]
        of_output = tl.load(grad + wide + changed_to[None, :], mask=valid, other=0.0) * changed_factor[None, :]
        x2 = tl.load(x + wide + changed[None, :], mask=valid, other=0.0)
        bounded = _tanh(tl.load(scale + narrow, mask=valid, other=0.0).to(tl.float32))
        growth = tl.exp(clamp * bounded)
        slope = clamp - clamp * bounded * bounded
        of_scale = (of_log_det[:, None] + of_output * (x2 * growth)) * slope
        tl.store(found + wide + kept[None, :], of_kept, mask=valid)
        tl.store(found + wide + changed[None, :], of_output * growth, mask=valid)
        tl.store(grad_scale + narrow, of_scale.to(grad_scale.dtype.element_ty), mask=valid)
        tl.store(grad_shift + narrow, of_output.to(grad_shift.dtype.element_ty), mask=valid)
        sum_scale += tl.where(valid, of_scale, 0.0)
        sum_shift += of_output
    place = part.to(tl.int64) * half + k
    tl.store(scale_sums + place, tl.sum(sum_scale, 0), mask=valid_k)
    tl.store(shift_sums + place, tl.sum(sum_shift, 0), mask=valid_k)


def couple_backward(
    coupling: Coupling,
    grad: torch.Tensor,
    grad_log_det: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    start: int,
    mixing: tuple[torch.Tensor, torch.Tensor] | None,
    scale_sums: torch.Tensor,
    shift_sums: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``couple``'s ``x``, ``scale`` and ``shift``, the latter two in the type of ``scale``.

    ``grad`` ``(rows, D)`` and ``grad_log_det`` ``(rows,)`` are those of its results; that of ``x`` is what comes
    through the coupling itself, not through ``scale`` and ``shift``. ``mixing`` are the outputs ``(D,)`` that the
    channels go to, and the fixed scale ``(D,)`` of each channel before. ``scale_sums`` and ``shift_sums``
    ``(parts, D/2)`` get the sums over rows.
    """
    total, channels = x.shape
    found, grad_scale, grad_shift = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
    targets, factors = (grad_log_det, grad_log_det) if mixing is None else mixing
    rows = 2
    _couple_backward[(len(scale_sums),)](
        grad, grad_log_det, x, scale, targets, factors, found, grad_scale, grad_shift, scale_sums, shift_sums,
        total, coupling.clamp, channels=channels, start=start, permuted=mixing is not None,
        rounds=SUMMED_ROWS // rows, rows=rows, block=triton.next_power_of_2(channels // 2), num_warps=4,
    )  # fmt: skip
    return found, grad_scale, grad_shift


@triton.jit
def _relu_backward(  # type: ignore[no-untyped-def]
    grad, output, sums, total, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr
):
    part = tl.program_id(0)
    row = part * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    valid_column = column < width
    valid = (row < total)[:, None] & valid_column[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(grad + place, mask=valid, other=0.0)
    value = tl.where(tl.load(output + place, mask=valid, other=0.0).to(tl.float32) > 0.0, value.to(tl.float32), 0.0)
    tl.store(grad + place, value.to(grad.dtype.element_ty), mask=valid)
    tl.store(sums + part.to(tl.int64) * width + column, tl.sum(value, 0), mask=valid_column)


def relu_backward(grad: torch.Tensor, output: torch.Tensor, sums: torch.Tensor) -> None:
    """Turn the gradient ``(rows, n)`` of ReLU's ``output`` into that of its input, in place.

    ``sums`` ``(parts, n)`` gets the sums over rows. Both matrices are contiguous.
    """
    total, width = grad.shape
    block = 128
    _relu_backward[(len(sums), triton.cdiv(width, block))](
        grad, output, sums, total, width=width, rows=SUMMED_ROWS, block=block, num_warps=4
    )


@triton.jit
def _likelihood(  # type: ignore[no-untyped-def]
    z, log_det, found, total, constant, channels: tl.constexpr, rows: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    c = tl.arange(0, block)
    valid_row = row < total
    place = row.to(tl.int64)[:, None] * channels + c[None, :]
    value = tl.load(z + place, mask=valid_row[:, None] & (c < channels)[None, :], other=0.0)
    less = tl.load(log_det + row, mask=valid_row, other=0.0)
    tl.store(found + row, 0.5 * tl.sum(value * value, 1) + constant - less, mask=valid_row)


def likelihood(z: torch.Tensor, log_det: torch.Tensor, constant: float) -> torch.Tensor:
    """``½‖z‖² + constant − log_det`` of each row ``(rows,)``."""
    total, channels = z.shape
    found = torch.empty_like(log_det)
    rows = 4
    _likelihood[(triton.cdiv(total, rows),)](
        z, log_det, found, total, constant,
        channels=channels, rows=rows, block=triton.next_power_of_2(channels), num_warps=4,
    )  # fmt: skip
    return found
