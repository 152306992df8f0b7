"""Images to patch embeddings in one module: normalise, backbone once, fixed linear map."""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import nn

from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.embedding import PatchEmbedder
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import scale_values
from moleflow.model.runtime.device import matmul_dtype

__all__ = ["FeatureExtractor", "as_levels", "stack_images"]


class FeatureExtractor(nn.Module):
    """``(B, S, S, 3)`` of values 0…255 to patch embeddings ``(B, H, W, D)`` float32; frozen, one backbone pass."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedder = PatchEmbedder(backbone.channels, config.backbone.embedding_dim)
        scale, offset = map(torch.from_numpy, backbone.preprocessing.scale_and_offset())
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def for_prediction(cls, config: ModelConfig, backbone: Backbone, precision: str) -> Self:
        """Features as prediction computes them in the resolved ``precision``: of the folded backbone.

        Training takes the same: half precision rounds a folded and a plain network differently, by several percent of
        an embedding, and what an expert was fitted to is what it must be shown. ``backbone`` stays unchanged.
        """
        return cls(config, backbone.folded(matmul_dtype(precision)))

    @property
    def preprocessing(self) -> Preprocessing:
        """Resolved input size, mean and std."""
        return self.backbone.preprocessing

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings of a batch; the products may run in a lower precision under autocast."""
        x = torch.addcmul(self.offset, images.float(), self.scale).permute(0, 3, 1, 2)
        return self.embedder(self.backbone(x)).float()


def stack_images(
    images: list[np.ndarray], resize: Callable[[np.ndarray], np.ndarray], device: torch.device
) -> torch.Tensor:
    """Resize RGB images where needed and bring them to ``device`` as one ``(B, S, S, 3)`` tensor of values 0…255.

    It is uint8 where all images are; otherwise float32, see ``as_levels``. On CUDA the copy goes through pinned memory
    and does not wait.
    """
    batch = torch.from_numpy(np.stack([as_levels(image, resize) for image in images]))
    if device.type != "cuda":
        return batch
    return batch.pin_memory().to(device, non_blocking=True)


def as_levels(image: np.ndarray, resize: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """An RGB image at the model's size over 0…255: uint8, or float32 where it has more bits.

    An image that ``moleflow.model.images.value_range.scale_values`` has brought to that range already, float32, is
    returned as it is; of other 16-bit images the whole range counts.
    """
    return image if image.dtype == np.float32 else scale_values(resize(image), None)
