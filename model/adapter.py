"""Input adapters: bring each task's embeddings to the distribution that the shared flow knows."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from model.embedding import with_position

__all__ = ["FixedLayerNorm", "InputAdapter", "WhiteningAdapter"]

GAMMA_MIN, GAMMA_SPAN = 0.5, 1.5
"""γ = 0.5 + 1.5·sigmoid(γ̂), in (0.5, 2) (method, section 3)."""

BETA_MAX = 2.0
"""β = 2·tanh(β̂), in (−2, 2) (method, section 3)."""

GAMMA_LOGIT_INIT, GAMMA_LOGIT_INIT_FIRST = 0.0, -0.7
"""γ̂ at the start: γ = 1.25, and about 1 for the first task (method, section 3)."""


class InputAdapter(nn.Module):
    """Embeddings ``(B, H, W, D)`` to the flow's input, of the same shape, with the position code in them."""

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Take from the task's embeddings, batches of ``(b, H, W, D)``, what is not learned; before training begins."""

    def folded(self, dtype: torch.dtype) -> nn.Module:
        """The same function as it predicts, which later training does not change; matrices in ``dtype``."""
        raise NotImplementedError


class WhiteningAdapter(InputAdapter):
    """Position code, LayerNorm over D without affine, then a bounded per-channel scale and shift of the task's own."""

    def __init__(self, dim: int, *, first: bool) -> None:
        super().__init__()
        self.gamma_logit = nn.Parameter(torch.full((dim,), GAMMA_LOGIT_INIT_FIRST if first else GAMMA_LOGIT_INIT))
        self.beta_logit = nn.Parameter(torch.zeros(dim))

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """γ and β, each ``(D,)``."""
        return GAMMA_MIN + GAMMA_SPAN * self.gamma_logit.sigmoid(), BETA_MAX * self.beta_logit.tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, H, W, D)`` to the flow's input, of the same shape."""
        return F.layer_norm(with_position(x), x.shape[-1:], *self.scale_and_shift())

    def folded(self, dtype: torch.dtype) -> "FixedLayerNorm":
        """The same function with γ and β computed once; it has no matrices, so ``dtype`` says nothing to it."""
        return FixedLayerNorm(*self.scale_and_shift())


class FixedLayerNorm(nn.Module):
    """Position code, then LayerNorm over D with a given scale and shift, each ``(D,)``."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, H, W, D)`` to the same shape."""
        return F.layer_norm(with_position(x), x.shape[-1:], self.scale, self.shift)
