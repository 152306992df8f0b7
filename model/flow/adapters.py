"""Input adapters: map each task's embeddings to the distribution that the shared flow was trained on."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.features.embedding import with_position
from moleflow.model.runtime.device import at_least_float32

__all__ = ["FixedLayerNorm", "InputAdapter", "SoftLN", "WhiteningAdapter", "ZCAAdapter"]

GAMMA_MIN, GAMMA_SPAN = 0.5, 1.5
"""γ = 0.5 + 1.5·sigmoid(γ̂), in (0.5, 2) (method, section 3)."""

BETA_MAX = 2.0
"""β = 2·tanh(β̂), in (−2, 2) (method, section 3)."""

GAMMA_LOGIT_INIT, GAMMA_LOGIT_INIT_FIRST = 0.0, -0.7
"""Initial γ̂: γ = 1.25, and about 1 for the first task (method, section 3)."""

NORM_WEIGHT_INIT = 0.01
"""Initial weight of the LayerNorm in the first task's input (method, section 3)."""

MLP_REDUCTION = 4
"""The MLP's hidden width is D / 4. The method gives none; a bottleneck, as in adapters (arXiv 1902.00751)."""

GATE_INIT = 0.0
"""Initial gate of the MLP. The method gives none; with zero a new task starts with unchanged embeddings (ReZero, arXiv
2003.04887). The gate gets a gradient from the first step, the MLP as soon as the gate has moved."""

VARIANCE_FLOOR = 1e-3
"""Added to every variance, as a fraction of their mean, so that directions of little variance are not blown up."""


class InputAdapter(nn.Module):
    """Maps embeddings ``(B, H, W, D)`` to the flow's input, of the same shape; adds the position code."""

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Fit what is not trained to the task's embeddings, batches ``(b, …, D)``; called before training."""

    def folded(self, dtype: torch.dtype) -> nn.Module:
        """A copy for prediction with its matrices in ``dtype``; later training does not change it."""
        raise NotImplementedError


class WhiteningAdapter(InputAdapter):
    """Position code, LayerNorm over D without affine, then the task's bounded scale and shift per channel."""

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
        """The same function with γ and β computed once; there are no matrices, so ``dtype`` is ignored."""
        return FixedLayerNorm(*self.scale_and_shift())


class FixedLayerNorm(nn.Module):
    """Position code, then LayerNorm over D with a given scale and shift, each ``(D,)``."""

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Buffer(scale)
        self.shift = nn.Buffer(shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, H, W, D)`` to the same shape."""
        return F.layer_norm(with_position(x), x.shape[-1:], self.scale, self.shift)


class SoftLN(InputAdapter):
    """The adapter of the ablation study: embeddings keep their distribution, except for a small correction.

    ``γ⊙(u + gate·MLP(u)) + β``, where ``u`` is ``x``, and for the first task ``(1 − w)·x + w·LayerNorm(x)``.

    ``x`` are position-coded embeddings. γ and β are a FiLM scale and shift (arXiv 1709.07871), unbounded, initially 1
    and 0. ``w`` is the sigmoid of one learned parameter, which later tasks do not have: their input is not normalised
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
        """A copy with its matrices in ``dtype``."""
        copy = SoftLN(len(self.gamma), first=self.norm_logit is not None)
        copy.load_state_dict(self.state_dict())
        copy.to(device=self.gamma.device, dtype=self.gamma.dtype)
        copy.mlp.to(dtype=dtype)
        return copy


class ZCAAdapter(InputAdapter):
    """``W(x − μ)``, then the position code; W is (Σ + ε)^(−1/2) of the task's good patches.

    ZCA whitening (Bell and Sejnowski, Vision Research 1997). LayerNorm discards the mean and norm of each patch; this
    keeps them, and equalises the directions in which the product's patches vary, as a Mahalanobis distance does.
    Nothing is trained by gradient: μ and W are fitted before training. Of all whitening transforms ZCA moves the
    embeddings least (Kessy, Lewin and Strimmer, The American Statistician 2018), so that channels keep their meaning
    for the shared base.
    """

    def __init__(self, dim: int, *, first: bool = False) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(dim))
        self.matrix = nn.Buffer(torch.eye(dim))

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Fit mean and covariance to embeddings ``(b, …, D)``; sums are float64, about the first batch's mean."""
        count, total = 0, torch.zeros_like(self.mean, dtype=torch.float64)
        products, origin = total.diag(), total
        for batch in batches:
            patches = batch.flatten(0, -2).float()
            if not count:
                origin = patches.mean(0)
            centred = patches - origin
            total += centred.sum(0, dtype=torch.float64)
            products += (centred.T @ centred).double()
            count += len(patches)
        shift = total / count
        covariance = products / count - shift.outer(shift)
        variances, axes = torch.linalg.eigh(covariance)
        variances = variances.clamp_min(0) + VARIANCE_FLOOR * variances.mean()
        self.mean.copy_(origin + shift)
        self.matrix.copy_((axes * variances.rsqrt()) @ axes.T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, H, W, D)`` to the flow's input, of the same shape.

        In float32 even if matrix products run in half precision: small variances are differences of large values.
        """
        with torch.autocast(x.device.type, enabled=False):
            return with_position(F.linear(x - self.mean, self.matrix))

    def folded(self, dtype: torch.dtype) -> "ZCAAdapter":
        """A copy; ``dtype`` is ignored, see ``forward``."""
        copy = ZCAAdapter(len(self.mean)).to(device=self.mean.device, dtype=self.mean.dtype)
        copy.load_state_dict(self.state_dict())
        return copy
