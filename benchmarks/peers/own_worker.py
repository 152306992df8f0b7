"""The worker of MoLE-Flow's side: its detector as it serves, and the floor below it. Run by ``speed.py``."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from protocol import Subject, serve
from safetensors.torch import save_file

from moleflow.model.config import ModelConfig
from moleflow.model.detector import Detector
from moleflow.model.features.backbone import Backbone
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.runtime.device import resolve_precision
from moleflow.model.runtime.threads import configure_threads
from moleflow.training.config import PRESETS
from moleflow.training.continual.sequence import train_tasks

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

CPU = torch.device("cpu")

CONFIG = ModelConfig()
"""The MAIN configuration: wide_resnet50_2 at 224 px, D = 768, 8 + 4 blocks, rank 64."""

IMAGES = 4
"""Images that the one task is learned from. Nothing depends on what they show: only shapes count for time."""

MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's, as timm has them for this backbone."""


class OwnSubject:
    """``Detector.predict`` on images in memory (routing included), and each answer's pixel map at 224 × 224."""

    def __init__(self, checkpoint: Path, precision: str) -> None:
        self.detector = Detector.load(checkpoint, device="cpu", precision=precision)
        self.facts = {"form": "PyTorch", "precision": precision, "pixels": CONFIG.backbone.image_size}

    def call(self, batch: int) -> Callable[[], Any]:
        rgb_images = list(_noise(batch))

        def predict() -> list[np.ndarray]:
            return [found.pixel_map() for found in self.detector.predict(rgb_images)]

        return predict


class BackboneFloor:
    """The bare forward pass of the backbone, cut after the last stage used; channels-last, nothing cast on the way."""

    def __init__(self, precision: str) -> None:
        dtype = PRECISIONS[precision]
        self.net = _backbone().net.to(dtype)
        self.facts = {"form": "floor", "precision": precision, "pixels": CONFIG.backbone.image_size}
        self.dtype = dtype

    def call(self, batch: int) -> Callable[[], Any]:
        size = CONFIG.backbone.image_size
        images = torch.randn(batch, 3, size, size, dtype=self.dtype).contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: self.net(images))


class ProductsFloor:
    """The bare matrix products of the flow, its experts merged: every pass over the patches that cannot be saved."""

    def __init__(self, precision: str) -> None:
        self.facts = {"form": "floor", "precision": precision, "pixels": CONFIG.backbone.image_size}
        self.dtype = PRECISIONS[precision]
        self.weights = [torch.randn(*shape, dtype=self.dtype) for shape in flow_products(CONFIG)]

    def call(self, batch: int) -> Callable[[], Any]:
        side = CONFIG.backbone.image_size // min(CONFIG.backbone.strides)
        inputs = {w.shape[1]: torch.randn(batch * side**2, w.shape[1], dtype=self.dtype) for w in self.weights}

        @torch.inference_mode()
        def multiply() -> None:
            for weight in self.weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

        return multiply


def flow_products(config: ModelConfig) -> list[tuple[int, int]]:
    """Shapes (outputs, inputs) of the weights that a patch is multiplied by, in the order of the flow.

    A MoLE block: the first layers of shift, and of scale with its context, and the two last ones. A DIA
    block: two MLPs of three layers, the first ones on the same half as one product.
    """
    dim, flow = config.backbone.embedding_dim, config.flow
    half = dim // 2
    mole = [(dim, half), (dim, dim), (half, dim), (half, dim)]
    dia = [(dim, half), *[(half, half)] * 4]
    return mole * flow.coupling_blocks + dia * flow.dia_blocks


def _backbone() -> Backbone:
    mean, std = MEAN_STD
    torch.manual_seed(0)
    return Backbone.empty(CONFIG.backbone, Preprocessing(image_size=CONFIG.backbone.image_size, mean=mean, std=std))


def _noise(count: int) -> Iterator[np.ndarray]:
    size = CONFIG.backbone.image_size
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 256, (size, size, 3), dtype=np.uint8)


def _write_checkpoint(folder: Path) -> Path:
    """A checkpoint of one product, after one step on noise; the backbone's weights are random."""
    weights, product = folder / "backbone.safetensors", folder / "data" / "noise"
    checkpoint = folder / "own.safetensors"
    product.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in _backbone().net.state_dict().items()}, weights)
    for number, image in enumerate(_noise(IMAGES)):
        Image.fromarray(image).save(product / f"{number}.png")
    preset = PRESETS["main"].with_changes(backbone={}, training={"epochs": 1})
    train_tasks(product.parent, ["noise"], checkpoint, preset=preset, backbone_weights=weights, device="cpu")
    return checkpoint


def builders(folder: Path) -> dict[str, Callable[[], Subject]]:
    """MoLE-Flow and the floor's two parts, each in fp32 and in bf16; ``folder`` takes the checkpoint."""
    checkpoint = functools.cache(lambda: _write_checkpoint(folder))
    found: dict[str, Callable[[], Subject]] = {}
    for precision in PRECISIONS:
        found[f"moleflow-{precision}"] = lambda p=precision: OwnSubject(checkpoint(), p)
        found[f"backbone-{precision}"] = lambda p=precision: BackboneFloor(p)
        found[f"products-{precision}"] = lambda p=precision: ProductsFloor(p)
    return found


def main() -> None:
    threads = configure_threads()
    versions = {"torch": torch.__version__, "threads": threads, "auto_precision": resolve_precision("auto", CPU)}
    with tempfile.TemporaryDirectory() as folder:
        serve(builders(Path(folder)), versions)


if __name__ == "__main__":
    main()
