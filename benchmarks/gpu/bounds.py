"""The lower bound of a prediction on this GPU: the bare backbone, and the bare products of flow and memory.

Each is measured as PyTorch runs it and as one CUDA graph; the backbone also with batch normalisation folded. The bound
is the sum of the fastest forms.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.timing import graphed, wall_ms
from benchmarks.shared.random_checkpoint import random_backbone
from benchmarks.speed.bare_network import PRECISIONS, BareBackbone, BareProducts
from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import stage_channels

__all__ = ["Bounds"]


class Bounds:
    """The bare parts of a network of a configuration, on a device in a resolved precision."""

    def __init__(self, config: ModelConfig, device: torch.device, precision: str) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.backbone = BareBackbone(precision, config, str(device))
        self.products = BareProducts(precision, config, str(device))
        self.folded = random_backbone(config.backbone).folded(PRECISIONS[precision]).to(device)

    def measure(self, batch: int, rounds: int) -> dict[str, Any]:
        """Milliseconds per batch of each part and form, and the bound."""
        parts = {
            "backbone": self.backbone.call(batch),
            "backbone, folded": self._folded(batch),
            "flow": self.products.call(batch),
        }
        if self.config.scoring.memory is not None:
            parts["memory"] = self._memory(batch)
        found: dict[str, Any] = {}
        for name, call in parts.items():
            for form, make in {"": lambda call: call, ", graph": lambda call: graphed(call, self.device)}.items():
                try:
                    found[f"{name}{form}"] = self._time(make(call), rounds)
                except Exception as error:  # one form must not cost the others
                    found[f"{name}{form}"] = f"{type(error).__name__}: {error}"[:200]
        bound = [
            min(value for key, value in found.items() if key.startswith(part) and isinstance(value, float))
            for part in ("backbone", "flow", "memory")
            if any(key.startswith(part) for key in parts)
        ]
        return found | {"bound_ms": sum(bound)}

    def _time(self, call: Callable[[], Any], rounds: int) -> float:
        for _ in range(3):
            call()
        return median(wall_ms(call, self.device, rounds, 0.2))

    def _folded(self, batch: int) -> Callable[[], Any]:
        size = self.config.backbone.image_size
        images = torch.randn(batch, 3, size, size, device=self.device, dtype=PRECISIONS[self.precision])
        images = images.contiguous(memory_format=torch.channels_last)
        cast = self.precision != "fp32"

        @torch.inference_mode()
        def run() -> Any:
            with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=cast):
                return self.folded(images)

        return run

    def _memory(self, batch: int) -> Callable[[], Any]:
        """The products of a memory, in float32 as the method needs them: projections and distances."""
        memory, backbone = self.config.scoring.memory, self.config.backbone
        assert memory is not None
        channels = stage_channels(backbone)
        dim = min(memory.dim, sum(channels))
        rows = [batch * (backbone.image_size // stride) ** 2 for stride in backbone.strides]
        shapes = [(count, wide, dim) for count, wide in zip(rows, channels, strict=True)]
        shapes += [(rows[0], dim, memory.prototypes), (rows[0] // 4, dim, memory.pooled)]
        operands = [
            (torch.randn(count, inputs, device=self.device), torch.randn(outputs, inputs, device=self.device))
            for count, inputs, outputs in shapes
            if outputs
        ]

        @torch.inference_mode()
        def multiply() -> None:
            for values, weight in operands:
                torch.nn.functional.linear(values, weight)

        return multiply
