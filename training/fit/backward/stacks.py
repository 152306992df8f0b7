"""The weights of a training step on a GPU, stacked: layers of one shape are merged, cast and differentiated together.

A launch takes longer than the work on one small matrix, and there are a hundred of them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.flow.context import CONTEXT_GAIN_MAX, ScaleContext
from moleflow.model.flow.lora import LoRADelta

__all__ = ["StackedContexts", "StackedLayer", "Stacks"]

_Key = tuple[torch.Size, float, bool, float]
"""Shape of the weights, factor of the output, whether low-rank changes are merged, and their scaling."""


@dataclass(eq=False)
class _Stack:
    """``n`` linear layers of one shape.

    ``source`` are their weights ``(n, out, in)`` and biases ``(n, out)`` in float32, computed from the parameters with
    gradients; ``used`` the same in the type of the products. ``weight_gradients`` ``(n, out, in)``, in the type of the
    products, and ``bias_sums`` ``(n, parts, out)`` are for ``backward`` to fill.
    """

    factor: float
    own: list[nn.Linear] = field(default_factory=list)
    deltas: list[LoRADelta] = field(default_factory=list)

    def build(self, dtype: torch.dtype) -> None:
        weight, bias = torch.stack([each.weight for each in self.own]), torch.stack([each.bias for each in self.own])
        if self.deltas:
            a, b = torch.stack([delta.A for delta in self.deltas]), torch.stack([delta.B for delta in self.deltas])
            alpha = self.deltas[0].scaling * self.factor
            weight = torch.baddbmm(weight, b, a, beta=self.factor, alpha=alpha)
            bias = bias + torch.stack([delta.bias for delta in self.deltas])
        elif self.factor != 1.0:
            weight = weight * self.factor
        if self.factor != 1.0:
            bias = bias * self.factor
        self.source = weight, bias
        self.used = weight.detach().to(dtype), bias.detach().to(dtype)

    def reserve(self, parts: int) -> None:
        """Make room for gradients, the biases' in ``parts``."""
        weight, bias = self.used
        self.weight_gradients = torch.empty_like(weight)
        self.bias_sums = torch.empty((len(bias), parts, bias.shape[1]), dtype=torch.float32, device=bias.device)


@dataclass(frozen=True, slots=True, eq=False)
class StackedLayer:
    """Layer ``index`` of a stack."""

    stack: _Stack
    index: int

    @property
    def weight(self) -> torch.Tensor:
        """``(out, in)`` in the type of the products."""
        return self.stack.used[0][self.index]

    @property
    def weight_shape(self) -> torch.Size:
        """(out, in)."""
        return self.stack.own[self.index].weight.shape

    @property
    def bias_sums(self) -> torch.Tensor:
        """``(parts, out)``: where sums of the output's gradient go."""
        return self.stack.bias_sums[self.index]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output ``(rows, out)`` for rows ``(rows, in)``."""
        return F.linear(x, self.weight, self.stack.used[1][self.index])

    def rectified(self, x: torch.Tensor) -> torch.Tensor:
        """ReLU of the output, in the product's own pass where the library can."""
        return torch._addmm_activation(self.stack.used[1][self.index], x, self.weight.T)

    def backward(self, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Keep the weight's gradient for the output's ``grad`` ``(rows, out)``; returns that of ``x``."""
        torch.mm(grad.T, x, out=self.stack.weight_gradients[self.index])
        return grad @ self.weight


class Stacks:
    """The linear layers of a flow: ``add`` or ``add_merged`` each, ``build``, and use the layers that they returned."""

    def __init__(self) -> None:
        self._stacks: dict[_Key, _Stack] = {}

    def add(self, own: nn.Linear, factor: float = 1.0) -> StackedLayer:
        """The layer whose output is ``factor`` times that of ``own``."""
        return self._add((own.weight.shape, factor, False, 0.0), own)

    def add_merged(self, base: nn.Linear, delta: LoRADelta, factor: float = 1.0) -> StackedLayer:
        """The layer whose output is ``factor`` times that of ``base`` and ``delta``."""
        layer = self._add((base.weight.shape, factor, True, delta.scaling), base)
        layer.stack.deltas.append(delta)
        return layer

    def _add(self, key: _Key, own: nn.Linear) -> StackedLayer:
        stack = self._stacks.setdefault(key, _Stack(key[1]))
        stack.own.append(own)
        return StackedLayer(stack, len(stack.own) - 1)

    def build(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Compute all weights in ``dtype`` and float32; returns the latter, weights and biases of each stack in turn.

        Call it with gradients enabled.
        """
        for stack in self._stacks.values():
            stack.build(dtype)
        return [tensor for stack in self._stacks.values() for tensor in stack.source]

    def reserve(self, parts: int) -> None:
        """Make room for gradients, the biases' in ``parts``."""
        for stack in self._stacks.values():
            stack.reserve(parts)

    def gradients(self) -> list[torch.Tensor]:
        """Gradients of what ``build`` returned, float32, once every layer has its own."""
        found = []
        for stack in self._stacks.values():
            found += [stack.weight_gradients.to(stack.source[0].dtype), stack.bias_sums.sum(1)]
        return found


class StackedContexts:
    """The scale contexts of ``n`` blocks: ``source`` are the folded kernels ``(n, k·k, D/2)``, ``used`` the same in
    ``dtype``, without gradients. Create it with gradients enabled."""

    def __init__(self, contexts: list[ScaleContext], dtype: torch.dtype) -> None:
        kernels = torch.stack([each.kernel for each in contexts])
        gains = CONTEXT_GAIN_MAX * torch.stack([each.gain for each in contexts]).sigmoid()
        folded = gains.view(-1, 1, 1, 1, 1) * kernels
        self.source = folded.flatten(2).transpose(1, 2).contiguous()
        self.used = self.source.detach().to(dtype)
        self._parts: torch.Tensor | None = None

    def reserve(self, parts: int) -> None:
        """Make room for gradients in ``parts``, if the kernels take any."""
        if self.source.requires_grad:
            count, *shape = self.source.shape
            self._parts = self.source.new_empty((count, parts, *shape))

    def each(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Each block's kernel ``(k·k, D/2)``, and room for its gradient ``(parts, k·k, D/2)`` if it takes any."""
        parts = [None] * len(self.used) if self._parts is None else self._parts.unbind()
        return list(zip(self.used, parts, strict=True))

    def gradient(self) -> torch.Tensor | None:
        """The gradient of ``source``, once every block has its own."""
        return None if self._parts is None else self._parts.sum(1)
