"""The flow's blocks with hand-written gradients by Triton kernels, for ``moleflow.training.fit.backward.accelerated``.

Both kinds are one: a coupling whose scale may see a context, and whose output may be permuted and scaled by channel.
Values are ``(rows, D)`` float32, a row per patch. They are not changed in place: a block's input is what its gradient
needs, with the hidden layers and the raw log-scale; the rest is computed again, which takes no traffic to memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling, DIABlock, MoLEBase
from moleflow.model.flow.lora import LoRADelta
from moleflow.model.flow.subnet import TaskSubnet
from moleflow.training.fit.backward.convolution import convolve, kernel_gradient
from moleflow.training.fit.backward.kernels import couple, couple_backward, relu_backward
from moleflow.training.fit.backward.stacks import StackedLayer, Stacks

__all__ = ["Kept", "Permutation", "StackedBlock", "dia_block", "mole_block"]


class Permutation(NamedTuple):
    """Channels ``(D,)`` int32 that the outputs come from, those that the inputs go to, and the fixed scale ``(D,)``."""

    sources: torch.Tensor
    targets: torch.Tensor
    scale: torch.Tensor


class Context(NamedTuple):
    """The kernel ``(k·k, D/2)`` of the scale context in the type of the products, and room for its gradient in parts
    ``(parts, k·k, D/2)``, if it takes any."""

    kernel: torch.Tensor
    gradient: torch.Tensor | None


class Kept(NamedTuple):
    """What ``backward`` needs: the input, what the layers saw, their hidden layers, and the raw log-scale."""

    x: torch.Tensor
    seen: torch.Tensor
    for_shift: list[torch.Tensor]
    for_scale: list[torch.Tensor]
    raw_scale: torch.Tensor


@dataclass(eq=False)
class StackedBlock:
    """A coupling that changes the channels from ``start``; ``has_context`` if its scale sees one."""

    coupling: Coupling
    shift: Sequence[StackedLayer]
    scale: Sequence[StackedLayer]
    start: int
    has_context: bool = False
    context: Context | None = None
    permutation: Permutation | None = None

    def room(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What its layers see, to be filled: the other half of its input ``x`` ``(rows, D)``, and then its context."""
        rows, channels = x.shape
        return torch.empty((rows, channels if self.has_context else channels // 2), dtype=dtype, device=x.device)

    def given(self, x: torch.Tensor) -> torch.Tensor:
        """The half of ``x`` that stays, ``(rows, D/2)``."""
        half = x.shape[1] // 2
        return x[:, half - self.start : x.shape[1] - self.start]

    def forward(
        self,
        x: torch.Tensor,
        seen: torch.Tensor,
        log_det: torch.Tensor,
        grid: tuple[int, int],
        copy: tuple[torch.Tensor, int] | None = None,
    ) -> tuple[torch.Tensor, Kept]:
        """The output, and what ``backward`` needs; adds to ``log_det`` ``(rows,)``.

        ``seen`` is from ``room``, its first half filled. ``copy`` is where a half of the output goes too, and its first
        channel.
        """
        half = x.shape[1] // 2
        given = seen[:, :half]
        if self.context is not None:
            convolve(given, self.context.kernel, grid, seen[:, half:])
        shift, for_shift = _mlp(self.shift, given)
        scale, for_scale = _mlp(self.scale, seen)
        mixing = None if self.permutation is None else (self.permutation.sources, self.permutation.scale)
        y = couple(self.coupling, x, scale, shift, log_det, self.start, mixing, *(copy or (None, 0)))
        return y, Kept(x, seen, for_shift, for_scale, scale)

    def backward(
        self, grad: torch.Tensor, grad_log_det: torch.Tensor, kept: Kept, grid: tuple[int, int]
    ) -> torch.Tensor:
        """The gradient of the input for those of output and log-determinant; the layers keep their own."""
        mixing = None if self.permutation is None else (self.permutation.targets, self.permutation.scale)
        grad, grad_scale, grad_shift = couple_backward(
            self.coupling, grad, grad_log_det, kept.x, kept.raw_scale, self.start, mixing,
            self.scale[-1].bias_sums, self.shift[-1].bias_sums,
        )  # fmt: skip
        from_shift = _mlp_backward(self.shift, kept.for_shift, grad_shift)
        from_scale = _mlp_backward(self.scale, kept.for_scale, grad_scale)
        half = from_shift.shape[1]
        if self.context is None:
            convolve(from_shift, None, grid, self.given(grad), adding=(from_shift, from_scale))
            return grad
        direct, around = from_scale[:, :half], from_scale[:, half:]
        convolve(around, self.context.kernel, grid, self.given(grad), flipped=True, adding=(from_shift, direct))
        if self.context.gradient is not None:
            kernel_gradient(kept.seen[:, :half], around, grid, self.context.gradient)
        return grad


def mole_block(stacks: Stacks, base: MoLEBase, subnet: TaskSubnet) -> StackedBlock:
    """A MoLE block with its layers in ``stacks``, before permutation and context are set."""
    factors = {"shift_out": MOLE_COUPLING.shift_gain, "scale_out": MOLE_COUPLING.slope}

    def layer(name: str) -> StackedLayer:
        own, factor = getattr(subnet, name), factors.get(name, 1.0)
        if isinstance(own, LoRADelta):
            return stacks.add_merged(getattr(base, name), own, factor)
        return stacks.add(own, factor)

    shift, scale = ([layer(f"{branch}_{part}") for part in ("in", "out")] for branch in ("shift", "scale"))
    return StackedBlock(MOLE_COUPLING, shift, scale, len(base.permutation) // 2, base.context is not None)


def dia_block(stacks: Stacks, block: DIABlock) -> StackedBlock:
    """A block of the deep invertible adapter with its layers in ``stacks``."""

    def layers(net: torch.nn.Sequential, factor: float) -> list[StackedLayer]:
        *inner, last = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
        return [*(stacks.add(each) for each in inner), stacks.add(last, factor)]

    shift, scale = layers(block.shift_net, DIA_COUPLING.shift_gain), layers(block.scale_net, DIA_COUPLING.slope)
    return StackedBlock(DIA_COUPLING, shift, scale, 0 if block.flip else shift[0].weight_shape[1])


def _mlp(layers: Sequence[StackedLayer], x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output of layers with ReLU between, and each layer's input."""
    given = [x]
    for layer in layers[:-1]:
        given.append(layer.rectified(given[-1]))
    return layers[-1](given[-1]), given


def _mlp_backward(layers: Sequence[StackedLayer], given: Sequence[torch.Tensor], grad: torch.Tensor) -> torch.Tensor:
    """The gradient of the input for that of the output, whose sums the last layer has already."""
    for index in range(len(layers) - 1, -1, -1):
        grad = layers[index].backward(given[index], grad)
        if index > 0:
            relu_backward(grad, given[index], layers[index - 1].bias_sums)
    return grad
