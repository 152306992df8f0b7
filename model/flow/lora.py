"""Low-rank changes to shared linear layers (LoRA, arXiv 2106.09685)."""

import torch
from torch import nn

__all__ = ["LoRADelta"]


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
        """Weight ``(out, in)`` and bias ``(out,)`` of the plain linear layer that is equal to base plus change."""
        return torch.addmm(base.weight, self.B, self.A, alpha=self.scaling), base.bias + self.bias
