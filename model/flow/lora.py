"""Linear layers whose weight is a shared base plus a low-rank change of the task's own (LoRA, arXiv 2106.09685)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["LoRADelta", "lora_linear"]


class LoRADelta(nn.Module):
    """A task's change to one shared linear layer: ``W + (a/r)·B A`` and ``b + bias``.

    ``A`` starts Xavier-uniform, ``B`` and the bias at zero, so a new task starts at the base (method, section 4).
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scaling = alpha / rank
        self.A = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, in_features)))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def merge(self, base: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight ``(out, in)`` and bias ``(out,)`` of the plain linear layer that base and change amount to."""
        return torch.addmm(base.weight, self.B, self.A, alpha=self.scaling), base.bias + self.bias


def lora_linear(x: torch.Tensor, base: nn.Linear, delta: LoRADelta) -> torch.Tensor:
    """``(W + (a/r)·B A) x + b + bias`` for ``x`` of ``(..., in)``; differentiable in everything that requires it.

    Forward is one dense product with the merged weight either way. Backward needs the dense gradient of the
    weight only while the base learns; on a frozen base the gradients of ``A`` and ``B`` come from thin products.
    """
    weight, bias = delta.merge(base)
    if base.weight.requires_grad or not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    # Autocast does not reach inside a custom function, so the cast to its type is done here.
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    return _FrozenBaseLinear.apply(x, weight.detach(), bias, delta.A, delta.B, delta.scaling)


class _FrozenBaseLinear(torch.autograd.Function):
    """A linear layer with a merged weight whose backward reaches ``x``, the bias, ``A`` and ``B`` only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return F.linear(x, weight, bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        grad = grads[0]
        rows, grad_rows = x.flatten(0, -2), grad.flatten(0, -2)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        thin_in = rows @ a.T.to(x.dtype)
        thin_out = grad_rows @ b.to(x.dtype)
        grad_b = (grad_rows.T @ thin_in).to(b.dtype).mul_(ctx.scaling)
        grad_a = (thin_out.T @ rows).to(a.dtype).mul_(ctx.scaling)
        grad_bias = grad_rows.sum(0, dtype=a.dtype)
        return grad_x, None, grad_bias, grad_a, grad_b, None
