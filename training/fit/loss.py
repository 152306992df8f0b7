"""The training loss: NLL with extra weight on each image's worst patches (method, section 5)."""

import torch

from moleflow.training.config import TrainingConfig

__all__ = ["tail_aware_loss"]


def tail_aware_loss(
    patch_nll: torch.Tensor, log_det: torch.Tensor, config: TrainingConfig, patches: torch.Tensor | None = None
) -> torch.Tensor:
    """``(1 − w)·mean + w·mean over each image's tail + λ·mean(log|det J|²)``.

    ``patch_nll`` and ``log_det`` are ``(B, H, W)``; the tail is the ``tail_fraction`` highest patches of an
    image, at least one. With ``tail_weight`` 0 this is the plain mean NLL plus the regulariser. Only the ``patches``
    count, positions ``(n,)`` in a flattened grid; all by default.
    """
    flat = patch_nll.flatten(1)
    if patches is not None:
        flat, log_det = flat.index_select(1, patches), log_det.flatten(1).index_select(1, patches)
    count = max(1, int(flat.shape[1] * config.tail_fraction))
    tail = flat.topk(count, dim=1).values
    likelihood = torch.lerp(flat.mean(), tail.mean(), config.tail_weight)
    return likelihood + config.lambda_logdet * log_det.square().mean()
