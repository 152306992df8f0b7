"""A small network with fixed weights and strides 2 to 32, registered with timm like a user's plugin."""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.resnet import BasicBlock, ResNet

default_cfgs = generate_default_cfgs(
    {
        "tiny_backbone.fixed": {
            "url": "",
            "input_size": (3, 32, 32),
            "pool_size": (1, 1),
            "num_classes": 4,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": (0.5, 0.45, 0.4),
            "std": (0.25, 0.2, 0.3),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


@register_model
def tiny_backbone(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """Stages of 8, 12, 20 and 24 channels at strides 4, 8, 16 and 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build_model_with_cfg(
            ResNet,
            "tiny_backbone",
            False,
            block=BasicBlock,
            layers=(1, 1, 1, 1),
            channels=(8, 12, 20, 24),
            zero_init_last=False,
            **options,
        )
