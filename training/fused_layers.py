"""The linear layers of a fused training step (``training.fused``), which give gradients of what is learned in them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ["Grads", "Layer", "LowRankLayer"]

Grads = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer as computed: ``weight`` ``(out, in)`` and ``bias`` ``(out,)``; gradients go to ``learned``."""

    weight: torch.Tensor
    bias: torch.Tensor
    learned: tuple[torch.Tensor, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def gradients(self, x: torch.Tensor, grad: torch.Tensor) -> Grads:
        """Of ``learned``, weight and bias, for input rows ``(n, in)`` and the output's gradient ``(n, out)``."""
        weight, bias = self.learned
        if not weight.requires_grad:
            return None, None
        return (grad.T @ x).to(weight.dtype), grad.sum(0).to(bias.dtype)


@dataclass(frozen=True, slots=True)
class LowRankLayer(Layer):
    """``factor·(W + (a/r)·B A)`` on a frozen ``W``: what is learned is A, B and bias, by thin products."""

    used: tuple[torch.Tensor, torch.Tensor]
    scaling: float
    factor: float

    def gradients(self, x: torch.Tensor, grad: torch.Tensor) -> Grads:
        a, b = self.used
        dtype = self.learned[0].dtype
        grad_a = ((grad @ b).T @ x).to(dtype).mul_(self.factor * self.scaling)
        grad_b = (grad.T @ (x @ a.T)).to(dtype).mul_(self.factor * self.scaling)
        return grad_a, grad_b, grad.sum(0).to(dtype).mul_(self.factor)
