"""The flow as a training step computes it: ``model.network.flow_forward`` in fewer passes over memory.

Outside the products a step is bound by memory, and what autograd makes of it line by line reads and writes the same
values many times over. Here each block is one function with its gradient written out:

- Base and low-rank change are merged, and the products' weights brought to their type, once a step. On a frozen base
  the gradients of the change come from thin products.
- Slope of the clamp and gain of the shift are in the last layers' weights.
- ReLU happens in place; its gradient needs its own output only.
- With ``p = x₂·exp(ŝ)`` kept, the gradient of ŝ is that of y₂ times p, and x₂ itself is not needed.
- The sums for biases are in the type of the products, which costs no pass of its own.

``FusedFlow`` is called on a few pictures at a time (``at_once``), and adds up their gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.context import depthwise, depthwise_kernel_gradient
from model.flow import DIA_COUPLING, MOLE_COUPLING, Coupling, DIABlock, MoLEBase
from model.lora import LoRADelta
from model.network import Base, Expert, flow_input
from model.runtime import at_least_float32
from model.subnet import TaskSubnet
from training.fused_layers import Grads, Layer, LowRankLayer

__all__ = ["FusedFlow", "at_once"]

AT_ONCE_BYTES = 10 * 2**20
"""Size that float32 embeddings of pictures taken together may have on a CPU: four pictures of MAIN. With fewer the
products and the summing of gradients take longer, with more the passes between, whose values leave the cache."""


def at_once(embeddings: torch.Tensor) -> int:
    """How many pictures of ``(B, H, W, D)`` to take together: all of them, but few on a CPU, see ``AT_ONCE_BYTES``."""
    if embeddings.device.type != "cpu":
        return len(embeddings)
    return max(1, AT_ONCE_BYTES // (4 * embeddings[0].numel()))


class FusedFlow:
    """The flow in one optimizer step, with products in ``dtype``.

    Call it on some pictures after others, each time followed by ``backward`` of what is made of the result; then
    ``finish`` brings the sums of their gradients to the parameters of ``base`` and ``expert``.
    """

    def __init__(self, base: Base, expert: Expert, dtype: torch.dtype) -> None:
        self.base, self.expert, self.dtype = base, expert, dtype
        self._sources: list[torch.Tensor] = []
        self._leaves: list[torch.Tensor] = []
        pairs = zip(base.blocks, expert.deltas, strict=True)
        self._blocks: list[_MoLE | _DIA] = [_MoLE(self, shared, subnet) for shared, subnet in pairs]
        self._blocks += [_DIA(self, block) for block in expert.dia]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``flow_forward``: embeddings ``(B, H, W, D)`` to latents of that shape, ``log|det J|`` ``(B, H, W)``."""
        x = flow_input(self.base, self.expert, x).contiguous()
        log_det = x.new_zeros(x.shape[:-1])
        for block in self._blocks:
            x, step = block(x)
            log_det = log_det + step
        return x, log_det

    def finish(self) -> None:
        """Take the gradients from what the parameters were merged into back to the parameters, and add them there."""
        pairs = zip(self._sources, self._leaves, strict=True)
        found = [(source, leaf.grad) for source, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward([source for source, _ in found], [grad for _, grad in found])

    def leaf(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of ``source`` that gathers gradients until ``finish``, if ``source`` takes any."""
        leaf = source.detach().requires_grad_(source.requires_grad)
        self._sources.append(source)
        self._leaves.append(leaf)
        return leaf

    def layer(self, weight: torch.Tensor, bias: torch.Tensor, factor: float = 1.0) -> Layer:
        """The layer whose output is ``factor`` times that of ``weight`` and ``bias``."""
        if factor != 1.0:
            weight, bias = weight * factor, bias * factor
        return Layer(*self._used(weight, bias), (self.leaf(weight), self.leaf(bias)))

    def merged_layer(self, base: nn.Linear, delta: LoRADelta, factor: float = 1.0) -> Layer:
        """The layer whose output is ``factor`` times that of ``base`` and ``delta``."""
        if base.weight.requires_grad:
            return self.layer(*delta.merge(base), factor)
        with torch.no_grad():
            weight, bias = self._used(*(tensor * factor for tensor in delta.merge(base)))
        learned = (delta.A, delta.B, delta.bias)
        return LowRankLayer(weight, bias, learned, self._used(delta.A, delta.B), delta.scaling, factor)

    def _used(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = (tensor.detach().to(self.dtype) for tensor in tensors)
        return first, second


class _MoLE:
    """A MoLE block (``model.flow.mole_forward``) with merged weights."""

    def __init__(self, flow: FusedFlow, base: MoLEBase, subnet: TaskSubnet) -> None:
        factors = {"shift_out": MOLE_COUPLING.shift_gain, "scale_out": MOLE_COUPLING.slope}

        def layer(name: str) -> Layer:
            own, factor = getattr(subnet, name), factors.get(name, 1.0)
            if isinstance(own, LoRADelta):
                return flow.merged_layer(getattr(base, name), own, factor)
            return flow.layer(own.weight, own.bias, factor)

        self.shift_in, self.scale_in = layer("shift_in"), layer("scale_in")
        self.shift_out, self.scale_out = layer("shift_out"), layer("scale_out")
        self.layers = self.shift_in, self.shift_out, self.scale_in, self.scale_out
        self.kernel = None if base.context is None else flow.leaf(base.context.folded_kernel())
        self.used_kernel = None if self.kernel is None else self.kernel.detach().to(flow.dtype)
        self.dtype = flow.dtype
        self.permutation, self.inverse = base.permutation, base.inverse_permutation
        self.scale, self.log_scale = base.channel_scale, base.channel_scale.log().sum()
        # Elsewhere asking would wait for the device, and costs more than the pass that a scale of 1 could be spared.
        self.is_scaled = self.scale.device.type != "cpu" or bool((self.scale != 1).any())

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        learned = [tensor for layer in self.layers for tensor in layer.learned]
        x, log_det = _MoLEStep.apply(x, self, self.kernel, *learned)
        return x, log_det + self.log_scale

    def seen(self, x1: torch.Tensor) -> torch.Tensor:
        """What the scale branch sees: ``(B, H, W, D/2)``, and its context behind it where there is one."""
        return x1 if self.used_kernel is None else torch.cat((x1, depthwise(x1, self.used_kernel)), -1)


class _MoLEStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, block: _MoLE, kernel: torch.Tensor | None, *learned: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x1, x2 = x.chunk(2, -1)
        x1 = x1.to(block.dtype).contiguous()
        seen = block.seen(x1)
        to_shift, to_scale = block.shift_in(x1).relu_(), block.scale_in(seen).relu_()
        y = torch.empty_like(x)
        y1, y2 = y.chunk(2, -1)
        y1.copy_(x1 if x1.dtype == x.dtype else x.chunk(2, -1)[0])
        log_det, kept = _couple(MOLE_COUPLING, x2, block.scale_out(to_scale), block.shift_out(to_shift), y2)
        y = y.flatten(0, -2).index_select(1, block.permutation).view(x.shape)
        if block.is_scaled:
            y *= block.scale[block.permutation]
        ctx.save_for_backward(x1, seen, to_shift, to_scale, *kept)
        ctx.block = block
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Grads:
        block: _MoLE = ctx.block
        x1, seen, to_shift, to_scale, *kept = ctx.saved_tensors
        grad = grads[0].flatten(0, -2).index_select(1, block.inverse).view(grads[0].shape)
        if block.is_scaled:
            grad *= block.scale
        grad1, grad2 = grad.chunk(2, -1)
        grad_s, grad_t = _couple_backward(MOLE_COUPLING, grad2, grads[1], kept, block.dtype)
        found, grad_x1 = _mlp_backward((block.shift_in, block.shift_out), (x1, to_shift), grad_t)
        more, grad_seen = _mlp_backward((block.scale_in, block.scale_out), (seen, to_scale), grad_s)
        grad1 += grad_x1
        grad_kernel = None
        if block.used_kernel is None or block.kernel is None:
            grad1 += grad_seen
        else:
            direct, context = grad_seen.chunk(2, -1)
            context = context.contiguous()
            grad1 += direct
            grad1 += depthwise(context, block.used_kernel.flip(-1, -2))
            if block.kernel.requires_grad:
                grad_kernel = depthwise_kernel_gradient(x1, context, block.kernel.shape[-1]).to(block.kernel.dtype)
        return grad, None, grad_kernel, *found, *more


class _DIA:
    """A block of the deep invertible adapter (``model.flow.DIABlock``)."""

    def __init__(self, flow: FusedFlow, block: DIABlock) -> None:
        self.flip, self.dtype = block.flip, flow.dtype
        self.scale = _layers(flow, block.scale_net, DIA_COUPLING.slope)
        self.shift = _layers(flow, block.shift_net, DIA_COUPLING.shift_gain)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        learned = [tensor for layer in (*self.scale, *self.shift) for tensor in layer.learned]
        return _DIAStep.apply(x, self, *learned)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The half that is kept and the one that is changed."""
        first, second = x.chunk(2, -1)
        return (second, first) if self.flip else (first, second)


def _layers(flow: FusedFlow, net: nn.Sequential, factor: float) -> list[Layer]:
    """The linear layers of an MLP, whose output is multiplied by ``factor``."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    last = len(linear) - 1
    return [flow.layer(each.weight, each.bias, factor if i == last else 1.0) for i, each in enumerate(linear)]


class _DIAStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, block: _DIA, *learned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given, changed = block.halves(x)
        first = given.to(block.dtype).contiguous()
        scale, shift = _mlp(block.scale, first), _mlp(block.shift, first)
        y = torch.empty_like(x)
        y_given, y_changed = block.halves(y)
        y_given.copy_(given)
        log_det, kept = _couple(DIA_COUPLING, changed, scale.pop(), shift.pop(), y_changed)
        ctx.save_for_backward(*kept, *scale, *shift)
        ctx.block = block
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Grads:
        block: _DIA = ctx.block
        kept, values = ctx.saved_tensors[:2], ctx.saved_tensors[2:]
        grad = grads[0].clone()
        grad_given, grad_changed = block.halves(grad)
        grad_s, grad_t = _couple_backward(DIA_COUPLING, grad_changed, grads[1], kept, block.dtype)
        count = len(block.scale)
        found, from_scale = _mlp_backward(block.scale, values[:count], grad_s)
        more, from_shift = _mlp_backward(block.shift, values[count:], grad_t)
        grad_given += from_scale
        grad_given += from_shift
        return grad, None, *found, *more


def _mlp(layers: Sequence[Layer], x: torch.Tensor) -> list[torch.Tensor]:
    """The input, the values after each ReLU, and the output of layers with ReLU between."""
    values = [x]
    for number, layer in enumerate(layers, 1):
        y = layer(values[-1])
        values.append(y if number == len(layers) else y.relu_())
    return values


def _mlp_backward(
    layers: Sequence[Layer], values: Sequence[torch.Tensor], grad: torch.Tensor
) -> tuple[list[torch.Tensor | None], torch.Tensor]:
    """Gradients of weights and biases, layer after layer, and of the input; ``values`` as ``_mlp`` gives them."""
    found: list[torch.Tensor | None] = []
    shape = values[0].shape[:-1]
    grad = grad.flatten(0, -2)
    for layer, value in zip(reversed(layers), reversed(values), strict=True):
        rows = value.flatten(0, -2)
        found = [*layer.gradients(rows, grad), *found]
        grad = grad @ layer.weight
        if value is not values[0]:
            grad = torch.ops.aten.threshold_backward(grad, rows, 0)
    return found, grad.view(*shape, -1)


def _couple(
    coupling: Coupling, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """``x2·exp(ŝ) + t`` into ``out``; the log-determinant, and what ``_couple_backward`` wants. ``s`` has its slope."""
    bounded = at_least_float32(s).tanh_()
    log_det = bounded.sum(-1).mul_(coupling.clamp)
    product = (bounded * coupling.clamp).exp_().mul_(x2)
    torch.add(product, t, out=out)
    return log_det, (bounded, product)


def _couple_backward(
    coupling: Coupling, grad: torch.Tensor, grad_log_det: torch.Tensor, kept: Sequence[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``s`` and ``t`` in ``dtype``; ``grad``, that of the output, becomes that of ``x2`` in place."""
    bounded, product = kept
    grad_t = grad.to(dtype, copy=True)  # grad itself changes below
    grad_s = torch.addcmul(grad_log_det.unsqueeze(-1), grad, product)
    slope = torch.addcmul(bounded.new_full((), coupling.clamp), bounded, bounded, value=-coupling.clamp)
    grad *= (bounded * coupling.clamp).exp_()
    return grad_s.mul_(slope).to(dtype), grad_t
