"""From images to the features of their patches: normalisation, backbone, embedding."""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import nn

from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.embedding import PatchEmbedder
from moleflow.model.features.patches import PatchFeatures, pooled_stage
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import scale_values
from moleflow.model.runtime.device import autocast, matmul_dtype

__all__ = ["FeatureExtractor", "as_levels", "stack_images"]


class FeatureExtractor(nn.Module):
    """``(B, S, S, 3)`` in 0…255 to features of patches; frozen.

    ``precision`` is the resolved one of matrix products. ``pooled_stages`` is the number of stages that are pooled for
    the memory: all, or none without a memory.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone, precision: str = "fp32") -> None:
        super().__init__()
        self.backbone, self.precision = backbone, precision
        self.embedder = PatchEmbedder(backbone.channels, config.backbone.embedding_dim)
        self.pooled_stages = 0 if config.scoring.memory is None else len(backbone.channels)
        scale, offset = map(torch.from_numpy, backbone.preprocessing.scale_and_offset())
        self.scale = nn.Buffer(scale, persistent=False)
        self.offset = nn.Buffer(offset, persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def for_prediction(cls, config: ModelConfig, backbone: Backbone, precision: str) -> Self:
        """An extractor on a folded copy of ``backbone``, in the resolved ``precision``.

        Training uses the same: in half precision, embeddings of the folded and the plain network differ by several
        percent, and an expert must see at prediction time what it was fitted to.
        """
        return cls(config, backbone.folded(matmul_dtype(precision)), precision)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.scale.device

    @property
    def preprocessing(self) -> Preprocessing:
        """Input size, mean and std."""
        return self.backbone.preprocessing

    def forward(self, images: torch.Tensor) -> PatchFeatures:
        with autocast(self.device, self.precision):
            x = torch.addcmul(self.offset, images.float(), self.scale).permute(0, 3, 1, 2)
            stages = self.backbone(x)
            pooled = tuple(map(pooled_stage, stages)) if self.pooled_stages else ()
            return PatchFeatures(self.embedder(stages).float(), pooled)


def stack_images(
    images: list[np.ndarray], resize: Callable[[np.ndarray], np.ndarray], device: torch.device
) -> torch.Tensor:
    """Resize RGB images where needed and copy them to ``device`` as one ``(B, S, S, 3)`` tensor in 0…255.

    uint8 if all images are, else float32 (see ``as_levels``). On CUDA the copy is asynchronous, from pinned memory.
    """
    levels = [as_levels(image, resize) for image in images]
    if device.type != "cuda" or not torch.cuda.is_available():
        return torch.from_numpy(np.stack(levels)).to(device)
    floats = any(each.dtype == np.float32 for each in levels)
    batch = torch.empty(
        (len(levels), *levels[0].shape), dtype=torch.float32 if floats else torch.uint8, pin_memory=True
    )
    np.stack(levels, out=batch.numpy(), casting="same_kind")
    return batch.to(device, non_blocking=True)


def as_levels(image: np.ndarray, resize: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """An RGB image at the model's size in 0…255: uint8, or float32 if it has more bits.

    A float32 image was already scaled by ``moleflow.model.images.value_range.scale_values`` and is returned unchanged;
    a uint16 image is scaled by the full 16-bit range.
    """
    return image if image.dtype == np.float32 else scale_values(resize(image), None)
