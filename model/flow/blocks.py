"""The normalizing flow: MoLE coupling blocks on a shared base, then the task's deep invertible adapter (DIA).

Every transform returns its value and ``log|det J|`` per patch from one call, and has an exact inverse.
Coupling as in Real NVP (arXiv 1605.08803), the soft clamp as in Glow-style flows for anomaly detection
(CFLOW-AD, arXiv 2107.12571); constants from the method, section 4. Grids are arguments: ``(B, H, W, D)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from moleflow.model.config import FlowConfig
from moleflow.model.flow.context import ScaleContext
from moleflow.model.flow.lora import LoRADelta, lora_linear
from moleflow.model.runtime.device import at_least_float32

__all__ = [
    "DIA_COUPLING",
    "MOLE_COUPLING",
    "Coupling",
    "DIABlock",
    "MoLEBase",
    "MoLEDelta",
    "ScaleAndShift",
    "SubnetWeights",
    "mole_forward",
    "mole_inverse",
    "scale_inputs",
]

SCALE_CLAMP = 1.9
"""c: the log-scale of a coupling stays within ±c (method, section 4)."""

SCALE_SLOPE = 0.1
"""A MoLE block's log-scale is c·tanh(0.1·s) (method, section 4)."""

SHIFT_GAIN = 0.1
"""A MoLE block adds 0.1·t (method, section 4)."""

FIXED_CHANNEL_SCALE = 1.0
"""A MoLE block's fixed per-channel scale at the start, and for good; it counts in log|det J| (method, section 4)."""

ScaleAndShift = tuple[torch.Tensor, torch.Tensor]
"""Raw scale ``s`` and shift ``t`` of a coupling, each ``(B, H, W, D/2)``."""


class SubnetWeights(NamedTuple):
    """Weight ``(out, in)`` and bias ``(out,)`` of the four plain linear layers that a task's subnet amounts to."""

    shift_in: tuple[torch.Tensor, torch.Tensor]
    shift_out: tuple[torch.Tensor, torch.Tensor]
    scale_in: tuple[torch.Tensor, torch.Tensor]
    scale_out: tuple[torch.Tensor, torch.Tensor]


def scale_inputs(dim: int, config: FlowConfig) -> int:
    """What the scale branch sees of a patch: D/2 channels and as many of context, or the channels alone."""
    return dim // 2 if config.scale_context_kernel is None else dim


class Coupling:
    """The arithmetic of one affine coupling step, without parameters; the two kinds differ in three constants."""

    def __init__(self, clamp: float, slope: float, shift_gain: float) -> None:
        self.clamp, self.slope, self.shift_gain = clamp, slope, shift_gain

    def log_scale(self, s: torch.Tensor) -> torch.Tensor:
        """Soft-clamped log-scale, in float32 at least whatever the products' type."""
        return self.clamp * torch.tanh(at_least_float32(s) * self.slope)

    def forward(self, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x2·exp(ŝ) + gain·t`` and its log-determinant per patch."""
        log_scale = self.log_scale(s)
        return torch.addcmul(self.shift_gain * at_least_float32(t), x2, log_scale.exp()), log_scale.sum(-1)

    def inverse(self, y2: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The ``x2`` that ``forward`` turns into ``y2``."""
        return (y2 - self.shift_gain * at_least_float32(t)) * (-self.log_scale(s)).exp()


MOLE_COUPLING = Coupling(SCALE_CLAMP, SCALE_SLOPE, SHIFT_GAIN)
DIA_COUPLING = Coupling(SCALE_CLAMP, 1 / SCALE_CLAMP, 1.0)


class MoLEBase(nn.Module):
    """The shared half of one MoLE coupling block: base weights, scale context, channel scale and permutation.

    The subnet has two branches of two linear layers with ReLU between, hidden width D. The shift branch
    sees ``x1``; the scale branch sees ``x1`` and its neighbours. Without scale context it is as wide as the shift
    branch, D/2 → D → D/2. Where tasks bring whole layers of their own, there are none here.
    """

    permutation: torch.Tensor
    inverse_permutation: torch.Tensor
    channel_scale: torch.Tensor

    def __init__(self, dim: int, config: FlowConfig, generator: torch.Generator) -> None:
        super().__init__()
        half = dim // 2
        if config.subnet == "lora":
            self.shift_in, self.shift_out = nn.Linear(half, dim), nn.Linear(dim, half)
            self.scale_in, self.scale_out = nn.Linear(scale_inputs(dim, config), dim), nn.Linear(dim, half)
        kernel = config.scale_context_kernel
        self.context = None if kernel is None else ScaleContext(half, kernel)
        # On the CPU also where the rest is outlined without memory: the generator is the CPU's.
        permutation = torch.randperm(dim, generator=generator, device="cpu")
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort(), persistent=False)
        self.register_buffer("channel_scale", torch.full((dim,), FIXED_CHANNEL_SCALE))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.inverse_permutation = self.permutation.argsort()

    def scale_input(self, x1: torch.Tensor) -> torch.Tensor:
        """What the scale branch sees: ``x1``, ``(B, H, W, D/2)``, and behind it the context, where there is one."""
        return x1 if self.context is None else torch.cat((x1, self.context(x1)), -1)


class MoLEDelta(nn.Module):
    """A task's low-rank changes to the four linear layers of one MoLE block."""

    def __init__(self, dim: int, config: FlowConfig) -> None:
        super().__init__()
        half, rank, alpha = dim // 2, config.lora_rank, config.lora_alpha
        self.shift_in, self.shift_out = LoRADelta(half, dim, rank, alpha), LoRADelta(dim, half, rank, alpha)
        self.scale_in = LoRADelta(scale_inputs(dim, config), dim, rank, alpha)
        self.scale_out = LoRADelta(dim, half, rank, alpha)

    def scale_and_shift(self, base: MoLEBase, x1: torch.Tensor) -> ScaleAndShift:
        """Raw scale and shift for the half ``x1``, ``(B, H, W, D/2)``, through base plus change."""
        hidden = lora_linear(x1, base.shift_in, self.shift_in).relu()
        t = lora_linear(hidden, base.shift_out, self.shift_out)
        hidden = lora_linear(base.scale_input(x1), base.scale_in, self.scale_in).relu()
        return lora_linear(hidden, base.scale_out, self.scale_out), t

    def merge(self, base: MoLEBase) -> SubnetWeights:
        """The plain layers that base and change amount to."""
        return SubnetWeights(
            self.shift_in.merge(base.shift_in),
            self.shift_out.merge(base.shift_out),
            self.scale_in.merge(base.scale_in),
            self.scale_out.merge(base.scale_out),
        )


def mole_forward(
    x: torch.Tensor, base: MoLEBase, subnet: Callable[[torch.Tensor], ScaleAndShift]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One MoLE block: couple, scale each channel, permute. ``(B, H, W, D)`` to the same and ``(B, H, W)``."""
    x1, x2 = x.chunk(2, -1)
    s, t = subnet(x1)
    y2, log_det = MOLE_COUPLING.forward(x2, s, t)
    y = torch.cat((x1, y2), -1) * base.channel_scale
    y = _Permute.apply(y, base.permutation, base.inverse_permutation)
    return y, log_det + base.channel_scale.log().sum()


def mole_inverse(y: torch.Tensor, base: MoLEBase, subnet: Callable[[torch.Tensor], ScaleAndShift]) -> torch.Tensor:
    """The inverse of ``mole_forward``."""
    y = _Permute.apply(y, base.inverse_permutation, base.permutation)
    x1, y2 = (y / base.channel_scale).chunk(2, -1)
    return torch.cat((x1, MOLE_COUPLING.inverse(y2, *subnet(x1))), -1)


class _Permute(torch.autograd.Function):
    """``x[..., permutation]``, whose gradient is the other permutation.

    Autograd would scatter the gradient into zeros, and plain indexing of the last axis is five times as slow as
    ``index_select`` on rows.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, permutation: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x.flatten(0, -2).index_select(1, permutation).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].flatten(0, -2).index_select(1, inverse).view(grads[0].shape), None, None


class DIABlock(nn.Module):
    """One affine coupling of the deep invertible adapter; ``flip`` says which half is transformed.

    Separate three-layer MLPs of width D/2 make scale and shift; their last layers start at zero, so a new
    adapter starts as the identity.
    """

    def __init__(self, dim: int, *, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.scale_net, self.shift_net = _dia_subnet(dim // 2), _dia_subnet(dim // 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, H, W, D)`` to the same and the log-determinant ``(B, H, W)``."""
        kept, changed = self._halves(x)
        changed, log_det = DIA_COUPLING.forward(changed, self.scale_net(kept), self.shift_net(kept))
        return self._join(kept, changed), log_det

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The ``x`` that ``forward`` turns into ``y``."""
        kept, changed = self._halves(y)
        return self._join(kept, DIA_COUPLING.inverse(changed, self.scale_net(kept), self.shift_net(kept)))

    def copy(self, dtype: torch.dtype) -> "DIABlock":
        """A block of the same function that later training does not change, its matrices in ``dtype``."""
        weight = next(self.parameters())
        copy = DIABlock(2 * weight.shape[0], flip=self.flip)
        copy.load_state_dict(self.state_dict())
        return copy.to(device=weight.device, dtype=dtype)

    def _halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = x.chunk(2, -1)
        return (second, first) if self.flip else (first, second)

    def _join(self, kept: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        return torch.cat((changed, kept) if self.flip else (kept, changed), -1)


def _dia_subnet(half: int) -> nn.Sequential:
    last = nn.Linear(half, half)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), last)
