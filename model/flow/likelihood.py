"""The likelihood of an embedding under the flow."""

import math

import torch

__all__ = ["negative_log_likelihood"]


def negative_log_likelihood(z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    """NLL of each patch under a standard normal: ½‖z‖² + (D/2)·log 2π − log|det J|.

    ``z`` is ``(..., D)`` and ``log_det`` ``(...)``; the result is ``(...)``, in nats. Computed in the type of ``z``.
    """
    dim = z.shape[-1]
    return 0.5 * z.square().sum(-1) + 0.5 * dim * math.log(2 * math.pi) - log_det
