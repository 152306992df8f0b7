"""Tiny configurations, checkpoints and products for tests; every parameter is randomised."""

import functools
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from moleflow.model.config import BackboneConfig, FlowConfig, MemoryConfig, ModelConfig, RouterConfig, ScoringConfig
from moleflow.model.features.backbone import Backbone, import_plugin, stage_channels
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.routing.router import Prototype, image_descriptor
from moleflow.model.store.checkpoint import Checkpoint, Header, Tensors, write_checkpoint
from moleflow.model.store.sections import digest_tensors, expert_tensors, profile_tensors
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, TaskCalibration
from moleflow.model.verdict.results import TaskInfo

__all__ = [
    "CAPPED",
    "FUSED",
    "PLUGIN",
    "TINY",
    "Networks",
    "damage",
    "product_image",
    "randomized",
    "tiny_base",
    "tiny_checkpoint",
    "tiny_config",
    "tiny_expert",
    "tiny_held_out",
    "tiny_parts",
    "write_product",
    "write_tested_product",
]

HELD_OUT = 20
"""Held-out images of each product in the tiny checkpoint."""

PLUGIN = Path(__file__).with_name("tiny_backbone.py")

M = TypeVar("M", bound=nn.Module)


CAPPED = ScoringConfig(cap=3.0)
"""A capped map, without a memory."""

FUSED = ScoringConfig(cap=4.0, memory=MemoryConfig(prototypes=20, pooled=8, dim=6))
"""A capped map with a small memory."""


def tiny_config(
    *, dim: int = 16, image_size: int = 32, scoring: ScoringConfig | None = None, **flow: Any
) -> ModelConfig:
    """Two MoLE and two DIA blocks of width 16 on the small network's strides 8 and 16; published scoring by default."""
    sizes: dict[str, Any] = {"coupling_blocks": 2, "dia_blocks": 2, "lora_rank": 2, "scale_context_kernel": 3} | flow
    return ModelConfig(
        backbone=BackboneConfig(name="tiny_backbone", image_size=image_size, embedding_dim=dim),
        flow=FlowConfig(**sizes),
        router=RouterConfig(axes=4),
        scoring=scoring or ScoringConfig(),
    )


def randomized(module: M, seed: int, spread: float = 0.3) -> M:
    """``module`` with random noise on every parameter, so that nothing is zero as at the start of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for name, buffer in module.named_buffers():
            if name.endswith("channel_scale"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def tiny_base(config: ModelConfig, seed: int = 1) -> Base:
    """A base with random parameters, as after training."""
    return randomized(Base(config, seed=seed), seed)


def tiny_expert(config: ModelConfig, seed: int = 2, *, first: bool = False) -> Expert:
    """An expert with random parameters, as after training."""
    return randomized(Expert(config, first=first, seed=seed), seed)


def tiny_parts(config: ModelConfig, expert: Expert | None = None, seed: int = 3) -> ProductParts:
    """An expert with a random memory and fusion, as the scoring has them."""
    generator = torch.Generator().manual_seed(seed)
    expert = expert or tiny_expert(config, seed)
    if config.scoring.cap is None:
        return ProductParts(expert)
    bank, memory = None, config.scoring.memory
    if memory is not None:
        channels = sum(stage_channels(config.backbone))
        sizes = (channels,), (channels, memory.dim), (memory.prototypes, memory.dim), (memory.pooled, memory.dim)
        bank = MemoryBank.of(*(torch.randn(size, generator=generator) for size in sizes))
    fusion = Fusion(config.scoring, config.backbone.embedding_dim, kinds=2 if memory and memory.pooled else 1)
    for name, value in fusion.named_buffers():
        value.copy_(torch.rand(value.shape, generator=generator) + (0 if name == "gate" else 1))
    return ProductParts(expert, bank, fusion)


class Networks(NamedTuple):
    """How the networks of a checkpoint are made.

    ``parts`` gets the product's index and the features of ``images`` images of it.
    """

    images: int
    backbone: Callable[[BackboneConfig], Backbone]
    base: Callable[[ModelConfig], Base]
    parts: Callable[[ModelConfig, Base, int, PatchFeatures], ProductParts]


def _random_parts(config: ModelConfig, base: Base, index: int, images: PatchFeatures) -> ProductParts:
    return tiny_parts(config, tiny_expert(config, 100 + index, first=index == 0), 300 + index)


TINY = Networks(8, Backbone.pretrained, tiny_base, _random_parts)
"""The small network, and random numbers that suit a few channels."""


def product_image(kind: int, seed: int, side: int = 32) -> np.ndarray:
    """An image of product ``kind``: colour and stripes by ``kind``, noise by ``seed``; RGB uint8."""
    rng = np.random.default_rng([kind, seed])
    colour = np.random.default_rng(kind).uniform(40, 215, 3)
    stripes = 30 * np.sin(np.arange(side) * (0.4 + 0.5 * kind))[:, None, None]
    noise = rng.normal(0, 6, (side, side, 3)) + rng.normal(0, 3)
    return np.clip(colour + stripes + noise, 0, 255).astype(np.uint8)


def write_product(root: Path, name: str, kind: int, count: int = 8, side: int = 32) -> Path:
    """A plain folder of ``count`` good images of a product below ``root``."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(product_image(kind, number, side)).save(folder / f"{number}.png")
    return folder


def write_tested_product(root: Path, name: str, kind: int, *, good: int = 4, bad: int = 3, masks: bool = True) -> Path:
    """A product in MVTec AD's layout: two training images, ``good`` good ones and ``bad`` with a bright square."""
    folder = root / name
    numbers = {"train/good": range(2), "test/good": range(100, 100 + good), "test/spot": range(200, 200 + bad)}
    for part, seeds in numbers.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            pixels = product_image(kind, seed)
            if part == "test/spot":
                pixels[8:16, 4:20] = 255
            Image.fromarray(pixels).save(folder / part / f"{seed}.png")
    if masks:
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 4:20] = 255
        (folder / "ground_truth" / "spot").mkdir(parents=True, exist_ok=True)
        for seed in numbers["test/spot"]:
            Image.fromarray(mask).save(folder / "ground_truth" / "spot" / f"{seed}_mask.png")
    return folder


TYPICAL_BACKGROUND = 45.0
"""Median background NLL of the tiny products' held-out images: above that of any image under random experts."""


def tiny_held_out(index: int, typical_background: float = TYPICAL_BACKGROUND) -> dict[str, torch.Tensor]:
    """Random held-out statistics of product ``index``, by the field names of ``TaskCalibration``."""
    generator = torch.Generator().manual_seed(index)
    draws = -torch.rand(3, HELD_OUT, generator=generator).log()
    return {
        "scores": 20 + index + draws[0],
        "peaks": 10 + index + draws[1],
        "grounds": typical_background + draws[1],
        "distances": 6 + 5 * draws[2],
    }


def tiny_checkpoint(
    path: Path,
    names: tuple[str, ...] = ("bolt", "nut", "gear"),
    config: ModelConfig | None = None,
    typical_background: float = TYPICAL_BACKGROUND,
    white_levels: tuple[int | None, ...] = (),
    networks: Networks = TINY,
) -> Checkpoint:
    """Write a checkpoint with prototypes of products 0, 1, … and random experts.

    ``white_levels`` are recorded as if the products had 16-bit images.
    """
    # A file beside it takes its name, as when training saves: who has opened the old one goes on with it.
    written = path.with_name(f"{path.name}.new")
    written.write_bytes(_checkpoint_bytes(names, config or tiny_config(), typical_background, white_levels, networks))
    written.replace(path)
    return Checkpoint.open(path)


@functools.cache
def _checkpoint_bytes(
    names: tuple[str, ...],
    config: ModelConfig,
    typical_background: float,
    white_levels: tuple[int | None, ...],
    networks: Networks,
) -> bytes:
    """The same for the same arguments, so each is made once."""
    import_plugin(str(PLUGIN))
    backbone, base = networks.backbone(config.backbone), networks.base(config)
    features = FeatureExtractor(config, backbone)
    parts = backbone.net.state_dict(), base.state_dict()
    sections: dict[str, Tensors] = {"backbone": parts[0], "base": parts[1]}
    infos = []
    for index, name in enumerate(names):
        images = [product_image(index, seed, config.backbone.image_size) for seed in range(networks.images)]
        with torch.inference_mode():
            batch = stack_images(images, features.preprocessing.resize, torch.device("cpu"))
            found = features(batch)
            descriptors = image_descriptor(found.embeddings)
        changes = descriptors * 0.02
        prototype = Prototype.fit(descriptors.clone(), config.router, changes.clone())
        held_out = tiny_held_out(index, typical_background)
        both = profile_tensors(prototype, held_out), expert_tensors(networks.parts(config, base, index, found))
        calibration = TaskCalibration.fit({key: value.tolist() for key, value in held_out.items()})
        sections |= {f"tasks.{index}.profile": both[0], f"tasks.{index}.expert": both[1]}
        infos.append(
            TaskInfo(
                name=name,
                index=index,
                learned_at=datetime(2026, 1, 1, tzinfo=UTC),
                train_images=8,
                held_out_images=HELD_OUT,
                folds=1,
                epochs=1,
                seed=0,
                false_alarm_rate=DEFAULT_FALSE_ALARM_RATE,
                threshold=calibration.scores.threshold(DEFAULT_FALSE_ALARM_RATE),
                pixel_threshold=calibration.peaks.threshold(DEFAULT_FALSE_ALARM_RATE),
                parameters=sum(value.numel() for part in both for value in part.values()),
                white_level=white_levels[index] if white_levels else None,
                profile_sha256=digest_tensors(both[0]),
                sha256=digest_tensors(both[1]),
            )
        )
    header = Header(
        preset="small",
        config=config,
        preprocessing=backbone.preprocessing,
        backbone_sha256=digest_tensors(parts[0]),
        base_sha256=digest_tensors(parts[1]),
        tasks=tuple(infos),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        write_checkpoint(path, header, sections)
        return path.read_bytes()


def damage(path: Path, section: str) -> None:
    """Flip a bit of a section in place."""
    offset = next(begin for _, begin, end in Checkpoint.open(path)._file.spans(section) if end > begin)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
