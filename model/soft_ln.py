"""The input adapter of the ablation study: embeddings keep their distribution, but for a small learned correction."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from model.adapter import InputAdapter
from model.embedding import with_position
from model.runtime import at_least_float32

__all__ = ["SoftLN"]

NORM_WEIGHT_INIT = 0.01
"""Share of the LayerNorm in the first task's input at the start (method, section 3)."""

MLP_REDUCTION = 4
"""The MLP's hidden width is D / 4. The method names none; a bottleneck, as in adapters (arXiv 1902.00751)."""

GATE_INIT = 0.0
"""The MLP's gate at the start. The method names none; zero, so that a new task starts with the embeddings as they
are (ReZero, arXiv 2003.04887). The gate learns at once and opens the way for the MLP."""


class SoftLN(InputAdapter):
    """``γ⊙(u + gate·MLP(u)) + β``, where ``u`` is ``x``, and for the first task ``(1 − w)·x + w·LayerNorm(x)``.

    ``x`` are position-coded embeddings. γ and β are a FiLM scale and shift (arXiv 1709.07871), unbounded, 1 and 0 at
    the start. ``w`` is the sigmoid of one learned number; later tasks have none, so nothing normalises their input
    (method, section 3).
    """

    def __init__(self, dim: int, *, first: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, dim // MLP_REDUCTION), nn.ReLU(), nn.Linear(dim // MLP_REDUCTION, dim))
        self.gate = nn.Parameter(torch.tensor(GATE_INIT))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        logit = math.log(NORM_WEIGHT_INIT / (1 - NORM_WEIGHT_INIT))
        self.norm_logit = nn.Parameter(torch.tensor(logit)) if first else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, H, W, D)`` to the flow's input, of the same shape, in float32 at least."""
        x = with_position(x)
        if self.norm_logit is not None:
            x = torch.lerp(x, F.layer_norm(x, (x.shape[-1],)), self.norm_logit.sigmoid())
        x = x + self.gate * at_least_float32(self.mlp(x))
        return torch.addcmul(self.beta, x, self.gamma)

    def folded(self, dtype: torch.dtype) -> "SoftLN":
        """A copy that later training does not change, its matrices in ``dtype``."""
        copy = SoftLN(len(self.gamma), first=self.norm_logit is not None)
        copy.load_state_dict(self.state_dict())
        copy.to(device=self.gamma.device, dtype=self.gamma.dtype)
        copy.mlp.to(dtype=dtype)
        return copy
