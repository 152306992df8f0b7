"""What is known of an image's patches: embeddings for the flow and the router, and pooled stages for the memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F

from moleflow.model.features.embedding import NEIGHBOURHOOD

__all__ = ["STAGE_TYPE", "PatchFeatures", "pooled_stage"]

STAGE_TYPE = torch.bfloat16
"""Type of pooled stages. They are rounded in training and prediction alike, so that a memory sees the same values."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchFeatures:
    """Features of a batch: ``embeddings`` ``(B, H, W, D)`` float32, and ``stages``, finest first, each ``(B, h, w, C)``
    bfloat16; none without a memory (``ScoringConfig``)."""

    embeddings: torch.Tensor
    stages: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, index: Sequence[int] | torch.Tensor | slice) -> Self:
        """The images at ``index``."""
        return type(self)(self.embeddings[index], tuple(stage[index] for stage in self.stages))

    def chosen(self, rows: Sequence[int]) -> Self:
        """The images at ``rows``; this object itself if these are all, in order."""
        if list(rows) == list(range(len(self))):
            return self
        return self.rows(torch.tensor(rows, dtype=torch.long, device=self.embeddings.device))

    def to(self, device: torch.device) -> Self:
        """The same on ``device``; on CUDA the copy is asynchronous, from pinned memory."""
        if device.type != "cuda":
            return self
        parts = [part.pin_memory().to(device, non_blocking=True) for part in (self.embeddings, *self.stages)]
        return type(self)(parts[0], tuple(parts[1:]))


def pooled_stage(stage: torch.Tensor) -> torch.Tensor:
    """Means over zero-padded 3×3 neighbourhoods (PatchCore, arXiv 2106.08265): ``(B, C, H, W)`` to ``(B, H, W, C)``."""
    pooled = F.avg_pool2d(stage, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2)
    return pooled.permute(0, 2, 3, 1).to(STAGE_TYPE)
