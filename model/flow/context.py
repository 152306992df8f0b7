"""Depthwise convolutions over a patch's neighbours: the mixer at the flow's input, and the context of the scale branch.

Both are shared by all tasks, learned with the first one and then frozen (method, sections 3 and 4).
"""

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.runtime.device import at_least_float32

__all__ = ["ScaleContext", "SpatialContextMixer", "depthwise", "depthwise_kernel_gradient"]

MIXER_GATE_INIT = 0.5
"""Initial ĝ; the gate is sigmoid(ĝ) (method, section 3)."""

CONTEXT_GAIN_MAX = 0.2
"""α = 0.2·sigmoid(α̂), the bounded weight of the context; initially α̂ = 0 and α = 0.1 (method, section 4)."""


def depthwise(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Depthwise convolution over the grid of ``(B, H, W, C)``, zero padding; ``kernel`` is ``(C, 1, k, k)``."""
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=kernel.shape[-1] // 2, groups=kernel.shape[0])
    return y.permute(0, 2, 3, 1)


def depthwise_kernel_gradient(x: torch.Tensor, grad: torch.Tensor, side: int) -> torch.Tensor:
    """Gradient ``(C, 1, side, side)`` of ``depthwise``'s kernel, given its input and output gradient ``(B, H, W, C)``.

    It is a convolution of each channel with its output gradient as the kernel, here computed image by image. On a CPU
    PyTorch's own backward is ten times slower for 5 × 5 kernels in bf16 (a fifth of a training step), and one
    convolution over all images exceeds the cache and takes three times as long.
    """
    found = grad.new_zeros((x.shape[-1], 1, side, side), dtype=at_least_float32(grad).dtype)
    for pair in zip(x, grad, strict=True):
        maps, kernels = (at_least_float32(each).permute(2, 0, 1).contiguous() for each in pair)
        found += F.conv2d(maps.unsqueeze(0), kernels.unsqueeze(1), padding=side // 2, groups=len(maps)).transpose(0, 1)
    return found


class SpatialContextMixer(nn.Module):
    """``(1 − g)·x + g·conv(x)`` with a depthwise kernel, initially a mean filter, and a scalar gate ``g``."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.full((dim, 1, kernel_size, kernel_size), 1 / kernel_size**2))
        self.gate = nn.Parameter(torch.tensor(MIXER_GATE_INIT))

    def folded_kernel(self) -> torch.Tensor:
        """The kernel ``(D, 1, k, k)`` of the one depthwise convolution that is equal to the whole mixer."""
        identity = torch.zeros_like(self.kernel)
        middle = self.kernel.shape[-1] // 2
        identity[:, :, middle, middle] = 1
        return torch.lerp(identity, self.kernel, self.gate.sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, H, W, D)`` to the same shape, in float32 at least."""
        return at_least_float32(depthwise(x, self.folded_kernel()))


class ScaleContext(nn.Module):
    """``α·conv(x)``, the context that the scale branch of a coupling block sees; initially zero."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(dim, 1, kernel_size, kernel_size))
        self.gain = nn.Parameter(torch.tensor(0.0))

    def folded_kernel(self) -> torch.Tensor:
        """The kernel times α, ``(D/2, 1, k, k)``."""
        return CONTEXT_GAIN_MAX * self.gain.sigmoid() * self.kernel
