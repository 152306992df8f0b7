"""The flow of a training step: ``benchmarks.shared.reference_flow`` with fewer passes over memory.

Outside the matrix products a step is memory-bound, and autograd reads and writes the same values many times. Here all
blocks are one function with a hand-written backward (``moleflow.training.fit.backward.blocks``):

- Base and low-rank change are merged, and weights cast to the type of the products, once per step. On a frozen base
  the gradients of the change come from thin products.
- The clamp's slope and the shift's gain are folded into the last layers' weights.
- Values and gradients are updated in place from block to block. ReLU's gradient needs only its output.
- With ``p = x₂·exp(ŝ)`` kept, the gradient of ŝ is that of y₂ times p, and x₂ itself is not needed.
- Bias gradients are summed in the type of the products, which avoids a cast.

``moleflow.training.fit.gradients`` calls it on a few images at a time, and adds up their gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, DIABlock, MoLEBase
from moleflow.model.flow.context import ScaleContext
from moleflow.model.flow.expert import Base, Expert, flow_input
from moleflow.model.flow.lora import LoRADelta
from moleflow.model.flow.subnet import TaskSubnet
from moleflow.training.fit.backward.blocks import FusedBlock, FusedContext, FusedDIA, FusedMoLE
from moleflow.training.fit.backward.layers import Layer, LowRankLayer

__all__ = ["FusedFlow"]


class FusedFlow:
    """The flow during one optimizer step, with matrix products in ``dtype``.

    Call it on parts of the batch, from any thread, and take the ``gradients`` of each part's loss; then ``finish``
    with their sums sets the gradients of the parameters of ``base`` and ``expert``.
    """

    def __init__(self, base: Base, expert: Expert, dtype: torch.dtype) -> None:
        self.base, self.expert, self.dtype = base, expert, dtype
        # Adapter and mixer are left to autograd.
        direct = [module for module in (expert.adapter, base.mixer) if module is not None]
        self._sources: list[torch.Tensor] = [p for module in direct for p in module.parameters() if p.requires_grad]
        self._leaves = list(self._sources)
        pairs = zip(base.blocks, expert.deltas, strict=True)
        self._blocks: list[FusedBlock] = [self._mole(shared, subnet) for shared, subnet in pairs]
        self._blocks += [self._dia(block) for block in expert.dia]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``(B, H, W, D)`` to latents of that shape, ``log|det J|`` ``(B, H, W)``."""
        x = flow_input(self.base, self.expert, x)
        return _Blocks.apply(x, self._blocks, *(tensor for block in self._blocks for tensor in block.learned))

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        """Gradients, for ``finish``, of a scalar loss computed from the results of one call."""
        return list(torch.autograd.grad(loss, self._leaves))

    def finish(self, gradients: Sequence[torch.Tensor]) -> None:
        """Propagate the gradients of the merged weights to the parameters, and add them there."""
        torch.autograd.backward(self._sources, gradients)

    def _mole(self, base: MoLEBase, subnet: TaskSubnet) -> FusedMoLE:
        factors = {"shift_out": MOLE_COUPLING.shift_gain, "scale_out": MOLE_COUPLING.slope}

        def layer(name: str) -> Layer:
            own, factor = getattr(subnet, name), factors.get(name, 1.0)
            if isinstance(own, LoRADelta):
                return self._merged_layer(getattr(base, name), own, factor)
            return self._layer(own.weight, own.bias, factor)

        shift, scale = (tuple(layer(f"{branch}_{part}") for part in ("in", "out")) for branch in ("shift", "scale"))
        return FusedMoLE(shift, scale, self._context(base.context), base, self.dtype)

    def _dia(self, block: DIABlock) -> FusedDIA:
        def layers(net: nn.Sequential, factor: float) -> tuple[Layer, ...]:
            """The linear layers of an MLP, with the output multiplied by ``factor``."""
            *inner, last = [layer for layer in net if isinstance(layer, nn.Linear)]
            return *(self._layer(each.weight, each.bias) for each in inner), self._layer(last.weight, last.bias, factor)

        scale, shift = layers(block.scale_net, DIA_COUPLING.slope), layers(block.shift_net, DIA_COUPLING.shift_gain)
        return FusedDIA(shift, scale, flip=block.flip, dtype=self.dtype)

    def _context(self, context: ScaleContext | None) -> FusedContext | None:
        if context is None:
            return None
        kernel = self._leaf(context.folded_kernel())
        return FusedContext(kernel, kernel.detach().to(self.dtype))

    def _layer(self, weight: torch.Tensor, bias: torch.Tensor, factor: float = 1.0) -> Layer:
        """The layer whose output is ``factor`` times that of ``weight`` and ``bias``."""
        if factor != 1.0:
            weight, bias = weight * factor, bias * factor
        return Layer(*self._used(weight, bias), (self._leaf(weight), self._leaf(bias)))

    def _merged_layer(self, base: nn.Linear, delta: LoRADelta, factor: float = 1.0) -> Layer:
        """The layer whose output is ``factor`` times that of ``base`` and ``delta``."""
        if base.weight.requires_grad:
            return self._layer(*delta.merge(base), factor)
        with torch.no_grad():
            weight, bias = self._used(*(tensor * factor for tensor in delta.merge(base)))
        learned = self._leaf(delta.A), self._leaf(delta.B), self._leaf(delta.bias)
        return LowRankLayer(weight, bias, learned, self._used(delta.A, delta.B), delta.scaling, factor)

    def _leaf(self, source: torch.Tensor) -> torch.Tensor:
        """A stand-in for ``source`` whose gradient ``finish`` passes on, if ``source`` takes any."""
        leaf = source.detach().requires_grad_(source.requires_grad)
        if source.requires_grad:
            self._sources.append(source)
            self._leaves.append(leaf)
        return leaf

    def _used(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = (tensor.detach().to(self.dtype) for tensor in tensors)
        return first, second


class _Blocks(torch.autograd.Function):
    """All blocks; values and gradients are each copied once, then updated in place."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, blocks: Sequence[FusedBlock], *learned: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, log_det = x.clone(memory_format=torch.contiguous_format), x.new_zeros(x.shape[:-1])
        ctx.blocks, ctx.kept = blocks, []
        for block in blocks:
            x, kept = block.forward(x, log_det)
            ctx.kept.append(kept)
        return x, log_det

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, grad_log_det = grads[0].clone(memory_format=torch.contiguous_format), grads[1]
        found: list[torch.Tensor | None] = []
        for block in reversed(ctx.blocks):
            grad, gradients = block.backward(grad, grad_log_det, ctx.kept.pop())
            found = [*gradients, *found]
        return grad, None, *found
