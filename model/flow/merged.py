"""Experts merged for prediction: low-rank changes are folded into the base, so they cost nothing over plain layers.

Merging is exact algebra (method, section 7): ``W + (a/r)·B A`` and ``b + bias`` become one weight and one bias. The
first layers of the shift and scale branches read the same half of the channels and become one matrix product. Gates,
gains, channel scales and the slopes of the soft clamps are multiplied into adjacent kernels and weights.

With scale context, the first layers read different inputs and stay two products; the scale branch reads the half and
its context concatenated. That takes as many multiplications as a joint product plus one for the context, without the
memory passes of adding the two.
"""

import torch
from torch import nn

from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling, DIABlock, MoLEBase
from moleflow.model.flow.expert import Base, Expert, module_list
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.flow.subnet import TaskSubnet
from moleflow.model.runtime.device import at_least_float32
from moleflow.model.runtime.fused import FusedConv, FusedLinear
from moleflow.model.runtime.parallel import parallel_map

__all__ = ["MergedBlock", "MergedDIA", "MergedExpert"]

Layer = tuple[torch.Tensor, torch.Tensor]
"""Weight ``(out, in)`` and bias ``(out,)``."""


class MergedBlock(nn.Module):
    """One MoLE block for one task with plain weights.

    Channel scales are deferred to the end of the flow: the true input is ``gain`` ``(D,)`` times the given one, and
    the true output ``_gain_after`` times the returned one. Weights that read the first half are multiplied by the gain,
    those that add to the second half divided by it.
    """

    def __init__(self, base: MoLEBase, subnet: TaskSubnet, gain: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        weights = subnet.merge(base)
        (shift_in, shift_bias), (scale_in, scale_bias) = weights.shift_in, weights.scale_in
        half = shift_in.shape[1]
        first, second = gain.chunk(2)
        shift_in, scale_in = shift_in * first, scale_in * first.repeat(scale_in.shape[1] // half)
        self.context: FusedConv | None = None
        if base.context is None:
            joined = torch.cat((shift_in, scale_in)), torch.cat((shift_bias, scale_bias))
            self.input = FusedLinear(*joined, dtype, "relu")
        else:
            self.context = _depthwise(base.context.folded_kernel(), dtype)
            self.input = FusedLinear(shift_in, shift_bias, dtype, "relu")
            self.scale_input = FusedLinear(scale_in, scale_bias, dtype, "relu")
        self.scale, self.shift = _last_layers(weights.scale_out, weights.shift_out, MOLE_COUPLING, dtype, second)
        self.permutation = nn.Buffer(base.permutation.int())  # int32: half the memory traffic

    def forward(self, x: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, D)`` to the same; adds to ``log_det``. Changes ``x``."""
        x1, x2 = x.chunk(2, -1)
        x1 = x1.to(self.input.dtype)
        if self.context is None:
            to_shift, to_scale = self.input(x1).chunk(2, -1)
        else:
            # One product per branch, with its ReLU fused.
            seen = self.context(x1.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            to_shift, to_scale = self.input(x1), self.scale_input(torch.cat((x1, seen), -1))
        _couple(MOLE_COUPLING, x2, self.scale(to_scale), self.shift(to_shift), log_det)
        return x.flatten(0, -2).index_select(1, self.permutation).view(x.shape)


class MergedDIA(nn.Module):
    """One block of the deep invertible adapter.

    The first layers of its two subnets stay two products: the result of a joint one would have to be copied apart for
    the second layers.
    """

    def __init__(self, block: DIABlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.flip = block.flip
        (scale_1, scale_2, scale_3), (shift_1, shift_2, shift_3) = (
            [(layer.weight, layer.bias) for layer in net if isinstance(layer, nn.Linear)]
            for net in (block.scale_net, block.shift_net)
        )
        self.scale_in, self.shift_in, self.scale_middle, self.shift_middle = (
            FusedLinear(*layer, dtype, "relu") for layer in (scale_1, shift_1, scale_2, shift_2)
        )
        self.scale, self.shift = _last_layers(scale_3, shift_3, DIA_COUPLING, dtype, torch.ones_like(scale_3[1]))

    def forward(self, x: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, D)``, changed in place and returned; adds to ``log_det``."""
        kept, changed = x.chunk(2, -1)[:: -1 if self.flip else 1]
        kept = kept.to(self.scale.dtype)  # once for both
        s = self.scale(self.scale_middle(self.scale_in(kept)))
        t = self.shift(self.shift_middle(self.shift_in(kept)))
        _couple(DIA_COUPLING, changed, s, t, log_det)
        return x


class MergedExpert(nn.Module):
    """Embeddings ``(B, H, W, D)`` to the NLL of each patch ``(B, H, W)``, float32, in nats.

    Args:
        base: the shared base; read, never changed.
        expert: the task's parameters; copied.
        dtype: type of the matrix products and their inputs; sums and couplings are at least float32.
    """

    gain: torch.Tensor | None
    log_det: torch.Tensor | None

    def __init__(self, base: Base, expert: Expert, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.no_grad():
            self.adapter = expert.adapter.folded(dtype)
            self.mixer = None if base.mixer is None else _depthwise(base.mixer.folded_kernel(), dtype)
            blocks, gain, log_det = [], None, None
            for shared, subnet in zip(base.blocks, expert.deltas, strict=True):
                gain = torch.ones_like(shared.channel_scale) if gain is None else gain
                blocks.append(MergedBlock(shared, subnet, gain, dtype))
                gain = _gain_after(shared, gain)
                fixed = shared.channel_scale.log().sum()
                log_det = fixed if log_det is None else log_det + fixed
            self.blocks = module_list(blocks)
            self.register_buffer("gain", gain)
            self.register_buffer("log_det", log_det)
            self.dia = module_list(MergedDIA(block, dtype) for block in expert.dia)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """NLL of each patch; on a CPU the images of a batch are computed in parallel."""
        if x.device.type == "cpu" and len(x) > 1:
            return torch.cat(parallel_map(self, x.split(1)))
        x = self.adapter(x)
        if self.mixer is not None:
            x = self.mixer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # The blocks change x in place: it must be a copy, with the channels innermost.
        x = at_least_float32(x).clone() if self.mixer is None else at_least_float32(x).contiguous()
        log_det = x.new_zeros(x.shape[:-1])
        for block in self.blocks:
            x = block(x, log_det)
        if self.gain is not None and self.log_det is not None:
            x *= self.gain
            log_det += self.log_det
        for adapter in self.dia:
            x = adapter(x, log_det)
        return negative_log_likelihood(x, log_det)


def _gain_after(base: MoLEBase, gain: torch.Tensor) -> torch.Tensor:
    """The gain of a block's output, in its permuted order, for the gain of its input."""
    return (gain * base.channel_scale)[base.permutation]


def _depthwise(kernel: torch.Tensor, dtype: torch.dtype) -> FusedConv:
    """A depthwise convolution with the kernel ``(C, 1, k, k)`` that keeps the grid's size."""
    middle = kernel.shape[-1] // 2
    return FusedConv(kernel, None, dtype, padding=(middle, middle), groups=len(kernel))


def _last_layers(
    scale: Layer, shift: Layer, coupling: Coupling, dtype: torch.dtype, gain: torch.Tensor
) -> tuple[FusedLinear, FusedLinear]:
    """The layers that compute ``slope·s``, and ``shift_gain·t / gain`` for the half whose gain is ``gain``."""
    to_shift = coupling.shift_gain / gain
    return (
        FusedLinear(scale[0] * coupling.slope, scale[1] * coupling.slope, dtype),
        FusedLinear(shift[0] * to_shift[:, None], shift[1] * to_shift, dtype),
    )


def _couple(coupling: Coupling, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor, log_det: torch.Tensor) -> None:
    """Couple ``x2`` in place and add to ``log_det``; ``s`` and ``t`` include slope and gain."""
    bounded = at_least_float32(s).tanh_()
    log_det.add_(bounded.sum(-1), alpha=coupling.clamp)
    torch.addcmul(t, x2, bounded.mul_(coupling.clamp).exp_(), out=x2)
