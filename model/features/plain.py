"""The features as a plain tuple of float32 tensors, for graphs of other engines."""

import torch
from torch import nn

from moleflow.model.features.extractor import FeatureExtractor

__all__ = ["PlainFeatures"]


class PlainFeatures(nn.Module):
    """Images ``(B, S, S, 3)`` in 0…255 to the embeddings, then the pooled stages (see ``PatchFeatures``)."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.extractor(images)
        return features.embeddings, *(stage.float() for stage in features.stages)
