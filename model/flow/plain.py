"""The merged flow without in-place changes and private operators, as a compiler takes it."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.features.embedding import with_position
from moleflow.model.flow.adapters import ZCAAdapter
from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling
from moleflow.model.flow.expert import module_list
from moleflow.model.flow.merged import MergedBlock, MergedDIA, MergedExpert
from moleflow.model.runtime.fused import FusedConv, FusedLinear

__all__ = ["PlainFlow", "PlainLinear"]


class PlainLinear(nn.Module):
    """``activation(W x + b)``."""

    def __init__(self, layer: FusedLinear) -> None:
        super().__init__()
        self.weight = nn.Buffer(layer.plain_weight())
        self.bias = nn.Buffer(torch.zeros(len(self.weight)) if layer.bias is None else layer.bias.clone())
        self.rectifies = layer.activation == "relu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` to ``(..., out)``."""
        y = F.linear(x, self.weight, self.bias)
        return y.relu() if self.rectifies else y


class PlainFlow(nn.Module):
    """Embeddings ``(B, H, W, D)`` to the NLL of each patch ``(B, H, W)``, as ``MergedExpert`` in float32.

    ``dim`` is D. What depends on the product is a buffer or parameter.
    """

    def __init__(self, merged: MergedExpert, dim: int) -> None:
        super().__init__()
        self.adapter = _Whitening(merged.adapter) if isinstance(merged.adapter, ZCAAdapter) else merged.adapter
        self.mixer = None if merged.mixer is None else _Depthwise(merged.mixer)
        self.blocks = module_list(_Block(block) for block in merged.blocks)
        self.dia = module_list(_DIA(block) for block in merged.dia)
        self.gain = nn.Buffer(torch.ones(dim) if merged.gain is None else merged.gain.clone())
        log_det = torch.zeros(()) if merged.log_det is None else merged.log_det
        # Of the NLL, in equal parts for each channel.
        self.constant = nn.Buffer((0.5 * math.log(2 * math.pi) - log_det / dim).expand(dim).clone())
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.adapter(x)
        if self.mixer is not None:
            x = self.mixer(x)
        parts: list[torch.Tensor] = []
        for block in self.blocks:
            x = block(x, parts)
        x = x * self.gain
        for adapter in self.dia:
            x = adapter(x, parts)
        nll = (0.5 * x.square() + self.constant).sum(-1)
        for log_det in parts:
            nll = nll - log_det
        return nll


class _Depthwise(nn.Module):
    """A depthwise convolution over the grid of ``(B, H, W, C)`` that keeps its size."""

    def __init__(self, layer: FusedConv) -> None:
        super().__init__()
        self.kernel = nn.Buffer(layer.plain_kernel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = self.kernel.shape[-1] // 2
        y = F.conv2d(x.permute(0, 3, 1, 2), self.kernel, padding=middle, groups=len(self.kernel))
        return y.permute(0, 2, 3, 1)


class _Whitening(nn.Module):
    """``ZCAAdapter`` with a sum in place of its difference, which OpenVINO would turn into one."""

    def __init__(self, adapter: ZCAAdapter) -> None:
        super().__init__()
        self.shift, self.matrix = nn.Buffer(-adapter.mean), nn.Buffer(adapter.matrix.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return with_position(F.linear(x + self.shift, self.matrix))


class _Block(nn.Module):
    def __init__(self, block: MergedBlock) -> None:
        super().__init__()
        self.input, self.scale, self.shift = map(PlainLinear, (block.input, block.scale, block.shift))
        self.context = None if block.context is None else _Depthwise(block.context)
        self.scale_input = None if block.context is None else PlainLinear(block.scale_input)
        self.permutation = nn.Buffer(block.permutation.clone())

    def forward(self, x: torch.Tensor, log_dets: list[torch.Tensor]) -> torch.Tensor:
        x1, x2 = x.chunk(2, -1)
        if self.context is None or self.scale_input is None:
            to_shift, to_scale = self.input(x1).chunk(2, -1)
        else:
            to_shift, to_scale = self.input(x1), self.scale_input(torch.cat((x1, self.context(x1)), -1))
        changed = _couple(MOLE_COUPLING, x2, self.scale(to_scale), self.shift(to_shift), log_dets)
        return torch.cat((x1, changed), -1).index_select(-1, self.permutation)


class _DIA(nn.Module):
    def __init__(self, block: MergedDIA) -> None:
        super().__init__()
        self.flip = block.flip
        self.scale = nn.Sequential(*map(PlainLinear, (block.scale_in, block.scale_middle, block.scale)))
        self.shift = nn.Sequential(*map(PlainLinear, (block.shift_in, block.shift_middle, block.shift)))

    def forward(self, x: torch.Tensor, log_dets: list[torch.Tensor]) -> torch.Tensor:
        kept, changed = x.chunk(2, -1)[:: -1 if self.flip else 1]
        changed = _couple(DIA_COUPLING, changed, self.scale(kept), self.shift(kept), log_dets)
        return torch.cat((changed, kept) if self.flip else (kept, changed), -1)


def _couple(
    coupling: Coupling, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor, log_dets: list[torch.Tensor]
) -> torch.Tensor:
    """The coupled ``x2``; ``s`` and ``t`` include slope and gain. Appends to ``log_dets``."""
    log_scale = coupling.clamp * s.tanh()
    log_dets.append(log_scale.sum(-1))
    return t + x2 * log_scale.exp()
