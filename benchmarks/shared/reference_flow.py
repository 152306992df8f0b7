"""The flow as the method writes it (sections 3 and 4): what tests and benchmarks compare the product's fast forms with.

Nothing is merged, folded or fused, and gradients are autograd's. Prediction computes the same in
``moleflow.model.flow.merged``, training in ``moleflow.training.fit.backward``.
"""

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling, DIABlock, MoLEBase
from moleflow.model.flow.context import CONTEXT_GAIN_MAX, depthwise
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.lora import LoRADelta
from moleflow.model.flow.subnet import TaskSubnet

__all__ = ["couple", "dia_block", "flow_forward", "linear", "mole_block", "scale_and_shift"]

Pair = tuple[torch.Tensor, torch.Tensor]


def flow_forward(base: Base, expert: Expert, x: torch.Tensor) -> Pair:
    """Embeddings ``(B, H, W, D)`` to latents ``(B, H, W, D)`` and ``log|det J|`` ``(B, H, W)``.

    The log-determinant is that of the MoLE and DIA blocks; adapter and mixer prepare their input.
    """
    x = expert.adapter(x)
    if base.mixer is not None:
        gate = base.mixer.gate.sigmoid()
        x = (1 - gate) * x + gate * depthwise(x, base.mixer.kernel)
    log_det = x.new_zeros(x.shape[:-1])
    for shared, subnet in zip(base.blocks, expert.deltas, strict=True):
        x, step = mole_block(shared, subnet, x)
        log_det = log_det + step
    for block in expert.dia:
        x, step = dia_block(block, x)
        log_det = log_det + step
    return x, log_det


def mole_block(base: MoLEBase, subnet: TaskSubnet, x: torch.Tensor) -> Pair:
    """Couple, scale each channel, permute: ``(B, H, W, D)`` to the same and the log-determinant ``(B, H, W)``."""
    x1, x2 = x.chunk(2, -1)
    y2, log_det = couple(MOLE_COUPLING, x2, *scale_and_shift(base, subnet, x1))
    y = torch.cat((x1, y2), -1) * base.channel_scale
    return y[..., base.permutation], log_det + base.channel_scale.log().sum()


def scale_and_shift(base: MoLEBase, subnet: TaskSubnet, x1: torch.Tensor) -> Pair:
    """Raw scale and shift for the half ``x1``, each ``(B, H, W, D/2)``."""
    seen = x1
    if base.context is not None:
        gain = CONTEXT_GAIN_MAX * base.context.gain.sigmoid()
        seen = torch.cat((x1, gain * depthwise(x1, base.context.kernel)), -1)
    t = linear(base, subnet, "shift_out", linear(base, subnet, "shift_in", x1).relu())
    s = linear(base, subnet, "scale_out", linear(base, subnet, "scale_in", seen).relu())
    return s, t


def linear(base: MoLEBase, subnet: TaskSubnet, name: str, x: torch.Tensor) -> torch.Tensor:
    """One layer of a subnet: ``W x + b + (a/r)·B(A x) + bias``, or the task's own plain layer."""
    own: LoRADelta | nn.Linear = getattr(subnet, name)
    if isinstance(own, nn.Linear):
        return own(x)
    shared: nn.Linear = getattr(base, name)
    return shared(x) + own.scaling * F.linear(F.linear(x, own.A), own.B) + own.bias


def dia_block(block: DIABlock, x: torch.Tensor) -> Pair:
    """Couple one half with the other one: ``(B, H, W, D)`` to the same and the log-determinant ``(B, H, W)``."""
    kept, changed = x.chunk(2, -1)[:: -1 if block.flip else 1]
    changed, log_det = couple(DIA_COUPLING, changed, block.scale_net(kept), block.shift_net(kept))
    return torch.cat((changed, kept) if block.flip else (kept, changed), -1), log_det


def couple(coupling: Coupling, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> Pair:
    """``x2·exp(ŝ) + gain·t`` with ``ŝ = c·tanh(slope·s)``, and the log-determinant per patch."""
    log_scale = coupling.clamp * torch.tanh(coupling.slope * s)
    return x2 * log_scale.exp() + coupling.shift_gain * t, log_scale.sum(-1)
