"""Patch embeddings: a fixed linear map from the backbone's stages to one ``(B, H, W, D)`` grid.

Definition (method, section 1; after PatchCore, arXiv 2106.08265): the 3×3 neighbourhood of each position (zero
padding), flattened channel-major to ``9·C`` values, is reduced to ``D`` by adaptive average pooling; coarser stages are
upsampled bilinearly to the finest grid; the embedding is the mean over stages.

All steps are linear and the pooling commutes with the upsampling, so each stage is one fixed 3×3 convolution at its own
resolution, grouped where the pooling windows form equal blocks. The kernel includes the division by the number of
stages.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.runtime.kernels import can_run_kernels

__all__ = ["PatchEmbedder", "position_code", "with_position"]

NEIGHBOURHOOD = 3
"""Side of a patch's neighbourhood (method, section 1)."""

POSITION_BASE = 10_000.0
"""Base of the wavelengths of the sinusoidal position code (Vaswani et al., arXiv 1706.03762)."""


class PatchEmbedder(nn.Module):
    """Backbone stages to patch embeddings; no learned parameters.

    Args:
        channels: channels of each stage, finest first.
        dim: D, the embedding dimension.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.groups = [math.gcd(c, dim) for c in channels]
        for index, stage_channels in enumerate(channels):
            kernel = _pooling_kernel(stage_channels, dim, self.groups[index]) / len(channels)
            self.register_buffer(f"kernel_{index}", kernel, persistent=False)
            windows = torch.tensor(_windows(NEIGHBOURHOOD**2 * stage_channels, dim), dtype=torch.int32)
            self.register_buffer(f"windows_{index}", windows.T.contiguous(), persistent=False)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Stages ``(B, C, H, W)``, finest first, to embeddings ``(B, H, W, D)`` on the finest grid."""
        total: torch.Tensor | None = None
        for index, stage in enumerate(stages):
            pooled = self._pooled(index, stage)
            if total is None:
                total = pooled
                continue
            total = total + F.interpolate(pooled, size=total.shape[-2:], mode="bilinear", align_corners=False)
        if total is None:
            raise ValueError("stages must not be empty")
        return total.permute(0, 2, 3, 1)

    def _pooled(self, index: int, stage: torch.Tensor) -> torch.Tensor:
        """A stage ``(B, C, H, W)`` to its part of the embeddings ``(B, D, H, W)``, at its own resolution."""
        if stage.dtype != torch.float32 and stage.device.type == "cuda" and can_run_kernels(stage.device):
            from moleflow.model.features.kernels import pool_windows  # needs Triton

            starts, ends = getattr(self, f"windows_{index}")
            gain = 1 / len(self.groups)
            return pool_windows(stage, starts, ends, NEIGHBOURHOOD, gain).permute(0, 3, 1, 2)
        kernel = getattr(self, f"kernel_{index}").to(stage.dtype)
        return F.conv2d(stage, kernel, padding=NEIGHBOURHOOD // 2, groups=self.groups[index])


def _pooling_kernel(channels: int, dim: int, groups: int) -> torch.Tensor:
    """The fixed kernel ``(dim, channels / groups, 3, 3)``: adaptive average pooling of the flattened window.

    Pooling window ``i`` of ``dim`` covers the values from ``floor(i·n/dim)`` to ``ceil((i+1)·n/dim)`` of
    ``n = 9·channels``. With ``groups`` dividing both, the windows of one group stay inside its channels.
    """
    window = NEIGHBOURHOOD**2
    inputs, outputs = channels // groups * window, dim // groups
    weight = torch.zeros(outputs, inputs, dtype=torch.float64)
    for row, (start, end) in enumerate(_windows(inputs, outputs)):
        weight[row, start:end] = 1 / (end - start)
    kernel = weight.view(outputs, channels // groups, NEIGHBOURHOOD, NEIGHBOURHOOD)
    return kernel.repeat(groups, 1, 1, 1).float()


def _windows(inputs: int, outputs: int) -> list[tuple[int, int]]:
    """First value, and the one after the last, of each window of adaptive average pooling."""
    return [(row * inputs // outputs, -(-(row + 1) * inputs // outputs)) for row in range(outputs)]


def position_code(height: int, width: int, dim: int) -> torch.Tensor:
    """The 2-D sinusoidal position code ``(height, width, dim)``: the first half of ``dim`` encodes x, the second y."""
    return torch.from_numpy(_position_values(height, width, dim))


@functools.lru_cache(maxsize=8)
def _position_values(height: int, width: int, dim: int) -> np.ndarray:
    """The cached values; as an array, since a tensor made in inference mode could not be used outside it."""
    half = dim // 2
    frequencies = np.exp(-math.log(POSITION_BASE) * np.arange(0, half, 2) / half)

    def one_axis(length: int) -> np.ndarray:
        angles = np.arange(length)[:, None] * frequencies
        return np.stack((np.sin(angles), np.cos(angles)), -1).reshape(length, half)

    x = np.broadcast_to(one_axis(width)[None], (height, width, half))
    y = np.broadcast_to(one_axis(height)[:, None], (height, width, half))
    return np.concatenate((x, y), -1, dtype=np.float32)


def with_position(embeddings: torch.Tensor) -> torch.Tensor:
    """Add the position code to ``(B, H, W, D)``."""
    height, width, dim = embeddings.shape[1:]
    # A GPU keeps the code, as a copy from the host would wait for it. Tensors without values belong to their mode.
    placed = _position_on if embeddings.is_cuda and type(embeddings) is torch.Tensor else _placed_position
    return embeddings + placed(height, width, dim, embeddings.device)


def _placed_position(height: int, width: int, dim: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside it
        return position_code(height, width, dim).to(device, non_blocking=True)


_position_on = functools.lru_cache(maxsize=8)(_placed_position)
