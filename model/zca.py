"""The fitted adapter: a task's embeddings decorrelated, so that the flow starts at a Gaussian of its own."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from model.adapter import InputAdapter
from model.embedding import with_position

__all__ = ["ZCAAdapter"]

VARIANCE_FLOOR = 1e-3
"""Added to every variance, as a share of their mean, so that directions which good pictures hardly use stay small."""


class ZCAAdapter(InputAdapter):
    """``W(x − μ)``, then the position code; W is (Σ + ε)^(−1/2) of the task's good patches.

    ZCA whitening (Bell and Sejnowski, Vision Research 1997). LayerNorm looks at one patch and throws its mean and norm
    away; this keeps them, and equalises the directions in which the product's patches vary, as a Mahalanobis distance
    does. Nothing in it learns by gradient: μ and W are fitted before training begins. Of all whitening transforms ZCA
    moves the embeddings least (Kessy, Lewin and Strimmer, The American Statistician 2018), so that channels keep their
    meaning to the shared base.
    """

    mean: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, dim: int, *, first: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Take mean and covariance from embeddings ``(b, H, W, D)``; summed in float64 about the first batch's mean."""
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

        In float32 also where products run in half precision: small variances are told from differences of large values.
        """
        with torch.autocast(x.device.type, enabled=False):
            return with_position(F.linear(x - self.mean, self.matrix))

    def folded(self, dtype: torch.dtype) -> "ZCAAdapter":
        """A copy that later training does not change; ``dtype`` says nothing to it, see ``forward``."""
        copy = ZCAAdapter(len(self.mean)).to(device=self.mean.device, dtype=self.mean.dtype)
        copy.load_state_dict(self.state_dict())
        return copy
