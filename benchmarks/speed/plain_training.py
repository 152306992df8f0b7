"""Plain training for comparison: every layer as the method writes it, and the backbone run for every batch.

It has the parameters of ``moleflow.model.flow.expert`` and computes the same, but nothing is merged, folded or fused,
and all products are float32.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling, MoLEBase, MoLEDelta
from moleflow.model.flow.context import CONTEXT_GAIN_MAX
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.flow.lora import LoRADelta
from moleflow.training.fit.loss import tail_aware_loss
from moleflow.training.fit.trainer import TaskTrainer

__all__ = ["PlainFeatures", "PlainTrainer", "plain_flow"]


class PlainFeatures:
    """Implements ``moleflow.training.embeddings.extraction.Embeddings`` by running the backbone for every batch.

    ``images`` are RGB, ``(n, S, S, 3)`` uint8, decoded and resized.
    """

    def __init__(self, features: FeatureExtractor, images: Sequence[np.ndarray]) -> None:
        self.features, self.images = features, list(images)

    def __len__(self) -> int:
        return len(self.images)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.images = []

    @torch.inference_mode()
    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)``."""
        chosen = [self.images[index] for index in indices.tolist()]
        return self.features(stack_images(chosen, self.features.preprocessing.resize, device))

    def subset(self, rows: Sequence[int]) -> "PlainFeatures":
        """The images at ``rows``."""
        return PlainFeatures(self.features, [self.images[row] for row in rows])


class PlainTrainer(TaskTrainer):
    """A ``TaskTrainer`` whose steps use ``plain_flow``."""

    def step(self, embeddings: torch.Tensor, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on ``(B, H, W, D)``; returns loss and mean NLL as scalars."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        z, log_det = plain_flow(self.base, self.expert, embeddings.clone())
        nll = negative_log_likelihood(z, log_det)
        loss = tail_aware_loss(nll, log_det, self.training)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_gradient_norm)
        self.optimizer.step()
        return loss.detach(), nll.detach().mean()


def plain_flow(base: Base, expert: Expert, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``moleflow.model.flow.expert.flow_forward`` of embeddings ``(B, H, W, D)``, layer by layer."""
    x = expert.adapter(x)
    if base.mixer is not None:
        gate = base.mixer.gate.sigmoid()
        x = (1 - gate) * x + gate * _depthwise(x, base.mixer.kernel)
    log_det = x.new_zeros(x.shape[:-1])
    for shared, delta in zip(base.blocks, expert.deltas, strict=True):
        assert isinstance(delta, MoLEDelta)  # the presets have no other
        x1, x2 = x.chunk(2, -1)
        t = _linear(_linear(x1, shared.shift_in, delta.shift_in).relu(), shared.shift_out, delta.shift_out)
        seen = _with_context(shared, x1)
        s = _linear(_linear(seen, shared.scale_in, delta.scale_in).relu(), shared.scale_out, delta.scale_out)
        y2, step = _couple(MOLE_COUPLING, x2, s, t)
        x = (torch.cat((x1, y2), -1) * shared.channel_scale)[..., shared.permutation]
        log_det = log_det + step + shared.channel_scale.log().sum()
    for block in expert.dia:
        kept, changed = x.chunk(2, -1)[:: -1 if block.flip else 1]
        changed, step = _couple(DIA_COUPLING, changed, block.scale_net(kept), block.shift_net(kept))
        x = torch.cat((changed, kept) if block.flip else (kept, changed), -1)
        log_det = log_det + step
    return x, log_det


def _linear(x: torch.Tensor, base: nn.Linear, delta: LoRADelta) -> torch.Tensor:
    """``W x + b`` plus the task's low-rank change: ``(a/r)·B(A x) + bias``."""
    return base(x) + delta.scaling * F.linear(F.linear(x, delta.A), delta.B) + delta.bias


def _with_context(shared: MoLEBase, x1: torch.Tensor) -> torch.Tensor:
    if shared.context is None:
        return x1
    gain = CONTEXT_GAIN_MAX * shared.context.gain.sigmoid()
    return torch.cat((x1, gain * _depthwise(x1, shared.context.kernel)), -1)


def _depthwise(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    maps = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
    return maps.permute(0, 2, 3, 1)


def _couple(
    coupling: Coupling, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    log_scale = coupling.clamp * torch.tanh(coupling.slope * s)
    return x2 * log_scale.exp() + coupling.shift_gain * t, log_scale.sum(-1)
