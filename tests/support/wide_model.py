"""Networks of real width: their configurations, random numbers that suit them, and products fitted to a few images."""

from typing import TypeVar

import torch
from tiny_model import PLUGIN, Networks
from torch import nn

from moleflow.model.config import BackboneConfig, FlowConfig, MemoryConfig, ModelConfig, RouterConfig, ScoringConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.memory.bank import MemoryBank, pool_patches, project
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import ProductParts, ProductScorer

__all__ = ["FITTED", "WIDE_FAST", "WIDE_MAIN", "perturbed"]

M = TypeVar("M", bound=nn.Module)

WIDE_MAIN = ModelConfig(
    backbone=BackboneConfig(name="tiny_backbone"), flow=FlowConfig(), router=RouterConfig(axes=4, spread_axes=8)
)
"""The flow of the preset ``main``, 8 + 4 blocks with D = 768 on 28 × 28 patches, on the small network."""

WIDE_FAST = ModelConfig(
    backbone=BackboneConfig(embedding_dim=160),
    flow=FlowConfig(adapter="zca", lora_rank=16),
    router=RouterConfig(axes=4, spread_axes=8),
    scoring=ScoringConfig(cap=4.0, memory=MemoryConfig()),
)
"""The network of the preset ``fast``: WideResNet-50-2, whitening, and a memory."""

MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

RESIDUAL_GAIN = 0.3
"""Weight of the last normalisation of a residual branch, which timm sets to zero for a new network."""


def perturbed(module: M, seed: int, gain: float = 0.5) -> M:
    """``module``, on any device, with random noise on every parameter that suits the width of its layers.

    Noise that is small for 16 channels makes a flow of 768 explode. A low-rank change gets as much as its base.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 0.1 * gain
            if parameter.ndim > 1:
                spread = gain if name.endswith(".B") else gain / parameter[0].numel() ** 0.5
            parameter.add_((spread * torch.randn(parameter.shape, generator=generator)).to(parameter.device))
    return module


def _backbone(config: BackboneConfig) -> Backbone:
    """The small network, or one of timm with random weights, whose residual branches all contribute."""
    if config.name == PLUGIN.stem:
        return Backbone.pretrained(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Backbone.empty(config, Preprocessing(image_size=config.image_size, **MEAN_STD))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            module.weight.fill_(RESIDUAL_GAIN)
    return backbone


def _base(config: ModelConfig) -> Base:
    return perturbed(Base(config, seed=1), 1)


def _parts(config: ModelConfig, base: Base, index: int, images: PatchFeatures) -> ProductParts:
    seed = 100 + index
    expert = perturbed(Expert(config, first=index == 0, seed=seed), seed)
    expert.adapter.fit([images.embeddings])
    scoring = config.scoring
    if scoring.cap is None:
        return ProductParts(expert)
    bank = None if scoring.memory is None else _bank(scoring.memory, seed, images)
    plain = ProductParts(expert, bank)
    nll, distances = ProductScorer(base, plain).raw_maps(images)
    return ProductParts(expert, bank, Fusion.fit(scoring, config.backbone.embedding_dim, nll, distances))


def _bank(memory: MemoryConfig, seed: int, images: PatchFeatures) -> MemoryBank:
    """A memory of as many patches as are wanted: those of ``images``, again and again, and each moved a little."""
    generator = torch.Generator().manual_seed(seed)
    channels = sum(stage.shape[-1] for stage in images.stages)
    axes = torch.randn(channels, memory.dim, generator=generator) / channels**0.5
    patches = project(images.stages, torch.zeros(channels), axes)
    kept = []
    for values, count in ((patches, memory.prototypes), (pool_patches(patches), memory.pooled)):
        flat = values.flatten(0, 2)
        moved = flat[torch.arange(count) % len(flat)]
        kept.append(moved + 0.3 * flat.std(0) * torch.randn(moved.shape, generator=generator))
    return MemoryBank.of(torch.zeros(channels), axes, *kept)


FITTED = Networks(3, _backbone, _base, _parts)
"""For ``tiny_checkpoint``: random numbers that suit the width of each layer, and experts whose adapter, memory and
fusion are fitted to few images, so that their maps are those of a product: not saturated, and around 0 where the map is
capped."""
