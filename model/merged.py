"""An expert as it predicts: its low-rank changes folded into the base, so that it costs nothing over plain layers.

Folding is exact algebra: ``W + (a/r)·B A`` and ``b + bias`` become one weight and one bias; the first layers of
the shift and scale branches read the same half of the channels and become one product; gates and gains are
multiplied into their kernels (method, section 7).
"""

import torch
import torch.nn.functional as F
from torch import nn

from model.context import depthwise
from model.flow import MoLEBase, ScaleAndShift, mole_forward
from model.network import Base, Expert, module_list
from model.runtime import at_least_float32
from model.scoring import negative_log_likelihood
from model.subnet import TaskSubnet

__all__ = ["MergedExpert"]


class _MergedBlock(nn.Module):
    """One MoLE block for one task with plain weights; permutation and channel scale are read from the base."""

    input_weight: torch.Tensor
    input_bias: torch.Tensor
    context_weight: torch.Tensor | None
    context_kernel: torch.Tensor | None
    shift_weight: torch.Tensor
    shift_bias: torch.Tensor
    scale_weight: torch.Tensor
    scale_bias: torch.Tensor

    def __init__(self, base: MoLEBase, subnet: TaskSubnet) -> None:
        super().__init__()
        weights = subnet.merge(base)
        shift_in, shift_in_bias = weights.shift_in
        scale_in, scale_in_bias = weights.scale_in
        half = shift_in.shape[1]
        shift_out, shift_out_bias = weights.shift_out
        scale_out, scale_out_bias = weights.scale_out
        context = base.context
        parts = {
            "input_weight": torch.cat((shift_in, scale_in[:, :half])),
            "input_bias": torch.cat((shift_in_bias, scale_in_bias)),
            "context_weight": None if context is None else scale_in[:, half:].contiguous(),
            "context_kernel": None if context is None else context.folded_kernel(),
            "shift_weight": shift_out,
            "shift_bias": shift_out_bias,
            "scale_weight": scale_out,
            "scale_bias": scale_out_bias,
        }
        for name, value in parts.items():
            self.register_buffer(name, value)

    def forward(self, x1: torch.Tensor) -> ScaleAndShift:
        hidden = F.linear(x1, self.input_weight, self.input_bias)
        to_shift, to_scale = hidden.chunk(2, -1)
        if self.context_kernel is not None and self.context_weight is not None:
            to_scale = to_scale + F.linear(depthwise(x1, self.context_kernel), self.context_weight)
        t = F.linear(to_shift.relu(), self.shift_weight, self.shift_bias)
        return F.linear(to_scale.relu(), self.scale_weight, self.scale_bias), t


class MergedExpert(nn.Module):
    """Embeddings ``(B, H, W, D)`` to the NLL of each patch ``(B, H, W)``, float32, in nats.

    Args:
        base: the shared base; read, never changed.
        expert: the task's parameters; copied.
        dtype: type of the matrices; run the forward pass under the matching ``model.runtime.autocast``.
    """

    mixer_kernel: torch.Tensor | None

    def __init__(self, base: Base, expert: Expert, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.no_grad():
            self.adapter = expert.adapter.folded(dtype)
            self.register_buffer("mixer_kernel", None if base.mixer is None else base.mixer.folded_kernel())
            self.blocks = module_list(
                _MergedBlock(shared, subnet).to(dtype)
                for shared, subnet in zip(base.blocks, expert.deltas, strict=True)
            )
            self.dia = module_list(block.copy(dtype) for block in expert.dia)
        # A plain list, so that the base's own blocks are not taken for parts of this module.
        self._shared = list(base.blocks)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each patch."""
        x = self.adapter(x)
        if self.mixer_kernel is not None:
            x = at_least_float32(depthwise(x, self.mixer_kernel))
        log_det = x.new_zeros(x.shape[:-1])
        for shared, subnet in zip(self._shared, self.blocks, strict=True):
            x, step = mole_forward(x, shared, subnet)
            log_det = log_det + step
        for block in self.dia:
            x, step = block(x)
            log_det = log_det + step
        return negative_log_likelihood(x, log_det)
