"""The lower bound of a prediction: the bare forward pass of the backbone, and the bare matrix products of the flow."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shared.random_checkpoint import random_backbone
from moleflow.model.config import ModelConfig

__all__ = ["CONFIG", "PRECISIONS", "BareBackbone", "BareProducts", "flow_products"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

CONFIG = ModelConfig()
"""The MAIN configuration: wide_resnet50_2 at 224 px, D = 768, 8 + 4 blocks, rank 64."""


class BareBackbone:
    """The forward pass of the backbone up to the last stage used; channels-last, without casts."""

    def __init__(self, precision: str, config: ModelConfig = CONFIG, device: str = "cpu") -> None:
        self.dtype, self.config, self.device = PRECISIONS[precision], config, device
        self.net = random_backbone(config.backbone).net.to(device, self.dtype)
        self.facts = {"form": "lower bound", "precision": precision, "pixels": config.backbone.image_size}

    def call(self, batch: int) -> Callable[[], Any]:
        """One pass over ``batch`` images."""
        size = self.config.backbone.image_size
        images = torch.randn(batch, 3, size, size, dtype=self.dtype, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: self.net(images))


class BareProducts:
    """The matrix products of the flow with merged experts: the passes over the patches that cannot be saved."""

    def __init__(self, precision: str, config: ModelConfig = CONFIG, device: str = "cpu") -> None:
        self.facts = {"form": "lower bound", "precision": precision, "pixels": config.backbone.image_size}
        self.kind: dict[str, Any] = {"dtype": PRECISIONS[precision], "device": device}
        self.config = config
        self.weights = [torch.randn(*shape, **self.kind) for shape in flow_products(config)]

    def call(self, batch: int) -> Callable[[], Any]:
        """One pass over ``batch`` images."""
        side = self.config.backbone.image_size // min(self.config.backbone.strides)
        inputs = {w.shape[1]: torch.randn(batch * side**2, w.shape[1], **self.kind) for w in self.weights}

        @torch.inference_mode()
        def multiply() -> None:
            for weight in self.weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

        return multiply


def flow_products(config: ModelConfig) -> list[tuple[int, int]]:
    """Shapes (outputs, inputs) of the weights that a patch is multiplied by, in the order of the flow.

    A MoLE block has the first layers of shift and of scale with its context, and the two last layers. A DIA block has
    two MLPs of three layers; their first layers take the same half, so they are one product.
    """
    dim, flow = config.backbone.embedding_dim, config.flow
    half = dim // 2
    mole = [(dim, half), (dim, dim), (half, dim), (half, dim)]
    dia = [(dim, half), *[(half, half)] * 4]
    return mole * flow.coupling_blocks + dia * flow.dia_blocks
