"""The blocks of the normalizing flow, as parameters: MoLE couplings on a shared base, and the task's deep invertible
adapter (DIA).

Couplings as in Real NVP (arXiv 1605.08803), the soft clamp as in Glow-style flows for anomaly detection (CFLOW-AD,
arXiv 2107.12571); constants from the method, section 4. ``benchmarks.shared.reference_flow`` has the plain arithmetic;
prediction has it in ``merged``, training in ``moleflow.training.fit.backward``.
"""

from typing import NamedTuple

import torch
from torch import nn

from moleflow.model.config import FlowConfig
from moleflow.model.flow.context import ScaleContext
from moleflow.model.flow.lora import LoRADelta

__all__ = [
    "DIA_COUPLING",
    "MOLE_COUPLING",
    "Coupling",
    "DIABlock",
    "MoLEBase",
    "MoLEDelta",
    "SubnetWeights",
    "scale_inputs",
]

SCALE_CLAMP = 1.9
"""c: the log-scale of a coupling stays within ±c (method, section 4)."""

SCALE_SLOPE = 0.1
"""A MoLE block's log-scale is c·tanh(0.1·s) (method, section 4)."""

SHIFT_GAIN = 0.1
"""A MoLE block adds 0.1·t (method, section 4)."""

FIXED_CHANNEL_SCALE = 1.0
"""A MoLE block's fixed per-channel scale; never learned, counted in log|det J| (method, section 4)."""


class Coupling(NamedTuple):
    """An affine coupling ``x₂·exp(c·tanh(slope·s)) + shift_gain·t``; the two kinds of block differ in its constants."""

    clamp: float
    slope: float
    shift_gain: float


MOLE_COUPLING = Coupling(SCALE_CLAMP, SCALE_SLOPE, SHIFT_GAIN)
DIA_COUPLING = Coupling(SCALE_CLAMP, 1 / SCALE_CLAMP, 1.0)


class SubnetWeights(NamedTuple):
    """Weight ``(out, in)`` and bias ``(out,)`` of the four plain linear layers that are equal to a task's subnet."""

    shift_in: tuple[torch.Tensor, torch.Tensor]
    shift_out: tuple[torch.Tensor, torch.Tensor]
    scale_in: tuple[torch.Tensor, torch.Tensor]
    scale_out: tuple[torch.Tensor, torch.Tensor]


def scale_inputs(dim: int, config: FlowConfig) -> int:
    """Input width of the scale branch: D/2 channels and their context, or the channels alone."""
    return dim // 2 if config.scale_context_kernel is None else dim


class MoLEBase(nn.Module):
    """The shared half of one MoLE coupling block: base weights, scale context, channel scale and permutation.

    The subnet has two branches of two linear layers with ReLU between, hidden width D. The shift branch sees ``x1``,
    the scale branch ``x1`` and its neighbours. Without scale context both branches are D/2 → D → D/2. If tasks have
    whole layers of their own, there are none here.
    """

    def __init__(self, dim: int, config: FlowConfig, generator: torch.Generator) -> None:
        super().__init__()
        half = dim // 2
        if config.subnet == "lora":
            self.shift_in, self.shift_out = nn.Linear(half, dim), nn.Linear(dim, half)
            self.scale_in, self.scale_out = nn.Linear(scale_inputs(dim, config), dim), nn.Linear(dim, half)
        kernel = config.scale_context_kernel
        self.context = None if kernel is None else ScaleContext(half, kernel)
        # On the CPU even if the module is built on the meta device: the generator is the CPU's.
        permutation = torch.randperm(dim, generator=generator, device="cpu")
        self.permutation = nn.Buffer(permutation)
        self.channel_scale = nn.Buffer(torch.full((dim,), FIXED_CHANNEL_SCALE))


class MoLEDelta(nn.Module):
    """A task's low-rank changes to the four linear layers of one MoLE block."""

    def __init__(self, dim: int, config: FlowConfig) -> None:
        super().__init__()
        half, rank, alpha = dim // 2, config.lora_rank, config.lora_alpha
        self.shift_in, self.shift_out = LoRADelta(half, dim, rank, alpha), LoRADelta(dim, half, rank, alpha)
        self.scale_in = LoRADelta(scale_inputs(dim, config), dim, rank, alpha)
        self.scale_out = LoRADelta(dim, half, rank, alpha)

    def merge(self, base: MoLEBase) -> SubnetWeights:
        """The plain layers that are equal to base plus change."""
        return SubnetWeights(
            self.shift_in.merge(base.shift_in),
            self.shift_out.merge(base.shift_out),
            self.scale_in.merge(base.scale_in),
            self.scale_out.merge(base.scale_out),
        )


class DIABlock(nn.Module):
    """One affine coupling of the deep invertible adapter; ``flip`` says which half is transformed.

    Scale and shift come from separate three-layer MLPs of width D/2. Their last layers start at zero, so a new adapter
    is the identity.
    """

    def __init__(self, dim: int, *, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.scale_net, self.shift_net = _dia_subnet(dim // 2), _dia_subnet(dim // 2)


def _dia_subnet(half: int) -> nn.Sequential:
    last = nn.Linear(half, half)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), last)
