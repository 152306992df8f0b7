"""A checkpoint that has learned nothing, for measuring time and memory.

It needs no download and no data: WideResNet-50-2 gets random weights (preset ``small`` comes with EfficientNet-Lite0's
own), and each product is learned from a few images of noise in one step. The router knows nothing but the noise, so
serve it with ``--unknown-limit 0``.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from moleflow.model.config import BackboneConfig, ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.training.config import PRESETS
from moleflow.training.continual.sequence import train_tasks

__all__ = ["random_backbone", "write_random_checkpoint"]

MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's mean and standard deviation, as timm has them for this backbone."""

IMAGES, SIDE = 4, 224
"""Training images of a product, and their size in pixels."""


def write_random_checkpoint(path: Path, products: int = 1, preset: str = "main") -> Path:
    """Write the file and return its path. The products are called ``noise0``, ``noise1``, …"""
    chosen = PRESETS[preset].with_changes(backbone={}, training={"epochs": 1, "folds": 1})
    names = [f"noise{number}" for number in range(products)]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _save_backbone(folder / "backbone.safetensors") if preset == "main" else None
        for product in names:
            (folder / "data" / product).mkdir(parents=True)
            for number in range(IMAGES):
                noise = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / "data" / product / f"{number}.png")
        train_tasks(folder / "data", names, path, preset=chosen, backbone_weights=weights, device="cpu")
    return path


def random_backbone(config: BackboneConfig) -> Backbone:
    """The network with random weights from a fixed seed."""
    mean, std = MEAN_STD
    torch.manual_seed(0)
    return Backbone.empty(config, Preprocessing(image_size=config.image_size, mean=mean, std=std))


def _save_backbone(path: Path) -> Path:
    backbone = random_backbone(ModelConfig().backbone)
    save_file({key: value.contiguous() for key, value in backbone.net.state_dict().items()}, path)
    return path
