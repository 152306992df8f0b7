"""Training the plain way, for comparison: the reference flow under autograd, the backbone run for every batch, all in
float32."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.training.fit.loss import tail_aware_loss
from moleflow.training.fit.trainer import TaskTrainer

__all__ = ["PlainFeatures", "PlainTrainer"]


class PlainFeatures:
    """Implements ``moleflow.training.embeddings.extraction.Embeddings`` by running the backbone for every batch.

    ``images`` are RGB, ``(n, S, S, 3)`` uint8, decoded and resized.
    """

    def __init__(self, extractor: FeatureExtractor, images: Sequence[np.ndarray]) -> None:
        self.extractor, self.images = extractor, list(images)

    def __len__(self) -> int:
        return len(self.images)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.images = []

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)``."""
        return self.features(indices, device).embeddings

    @torch.inference_mode()
    def features(self, indices: torch.Tensor, device: torch.device) -> PatchFeatures:
        """The features at ``indices`` ``(b,)`` on ``device``."""
        chosen = [self.images[index] for index in indices.tolist()]
        return self.extractor(stack_images(chosen, self.extractor.preprocessing.resize, device))

    def subset(self, rows: Sequence[int]) -> "PlainFeatures":
        """The images at ``rows``."""
        return PlainFeatures(self.extractor, [self.images[row] for row in rows])


class PlainTrainer(TaskTrainer):
    """Trains as ``TaskTrainer`` does, by ``benchmarks.shared.reference_flow.flow_forward``."""

    def step(self, embeddings: torch.Tensor, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on ``(B, H, W, D)``; returns loss and mean NLL as scalars."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        z, log_det = flow_forward(self.base, self.expert, embeddings.clone())
        nll = negative_log_likelihood(z, log_det)
        loss = tail_aware_loss(nll, log_det, self.training)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_gradient_norm)
        self.optimizer.step()
        return loss.detach(), nll.detach().mean()
