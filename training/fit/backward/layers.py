"""Linear layers with hand-written gradients, for ``moleflow.training.fit.backward.network``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ["Gradients", "Layer", "LowRankLayer", "mlp", "mlp_backward"]

Gradients = list[torch.Tensor | None]
"""One per learned tensor, in order; ``None`` if it takes no gradient."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer with ``weight`` ``(out, in)`` and ``bias`` ``(out,)``; gradients are those of ``learned``."""

    weight: torch.Tensor
    bias: torch.Tensor
    learned: tuple[torch.Tensor, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def gradients(self, x: torch.Tensor, grad: torch.Tensor) -> Gradients:
        """Gradients of ``learned`` for input rows ``(n, in)`` and the output's gradient ``(n, out)``."""
        weight, bias = self.learned
        if not weight.requires_grad:
            return [None, None]
        return [(grad.T @ x).to(weight.dtype), grad.sum(0).to(bias.dtype)]


@dataclass(frozen=True, slots=True)
class LowRankLayer(Layer):
    """``factor·(W + (a/r)·B A)`` with a frozen ``W``: A, B and the bias are learned, by thin products."""

    used: tuple[torch.Tensor, torch.Tensor]
    scaling: float
    factor: float

    def gradients(self, x: torch.Tensor, grad: torch.Tensor) -> Gradients:
        a, b = self.used
        dtype = self.learned[0].dtype
        grad_a = ((grad @ b).T @ x).to(dtype).mul_(self.factor * self.scaling)
        grad_b = (grad.T @ (x @ a.T)).to(dtype).mul_(self.factor * self.scaling)
        return [grad_a, grad_b, grad.sum(0).to(dtype).mul_(self.factor)]


def mlp(layers: Sequence[Layer], x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output of layers with ReLU between, and each layer's input, which ``mlp_backward`` needs."""
    given = [x]
    for layer in layers[:-1]:
        given.append(layer(given[-1]).relu_())
    return layers[-1](given[-1]), given


def mlp_backward(
    layers: Sequence[Layer], given: Sequence[torch.Tensor], grad: torch.Tensor
) -> tuple[Gradients, torch.Tensor]:
    """Gradients of all learned tensors, layer by layer, and of the input, for that of the output."""
    found: Gradients = []
    shape = given[0].shape
    grad = grad.flatten(0, -2)
    for layer, value in zip(reversed(layers), reversed(given), strict=True):
        rows = value.flatten(0, -2)
        found = [*layer.gradients(rows, grad), *found]
        grad = grad @ layer.weight
        if value is not given[0]:
            grad = torch.ops.aten.threshold_backward(grad, rows, 0)
    return found, grad.view(shape)
