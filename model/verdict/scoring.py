"""From the anomaly of patches to an image score."""

import torch

__all__ = ["TOP_K", "image_score"]

TOP_K = 3
"""The image score is the mean of this many highest patches (method, section 6)."""


def image_score(patch_nll: torch.Tensor, top_k: int = TOP_K) -> torch.Tensor:
    """Mean of the ``top_k`` highest patches: ``(B, H, W)`` to ``(B,)``. Unbounded, may be negative."""
    flat = patch_nll.flatten(1)
    return flat.topk(min(top_k, flat.shape[1]), dim=1).values.mean(1)
