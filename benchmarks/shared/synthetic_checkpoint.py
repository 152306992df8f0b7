"""Checkpoints of any number of products with random weights, written without training: for time and memory.

The network has a preset's shapes. Each product has its own prototype and held-out scores, and an expert of real size;
after ``DISTINCT_EXPERTS`` of them the numbers repeat, which makes no reader faster.
"""

from pathlib import Path

import torch

from benchmarks.shared.random_checkpoint import random_backbone
from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import stage_channels
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.routing.router import Prototype
from moleflow.model.store.checkpoint import Header, Tensors, write_checkpoint
from moleflow.model.store.sections import digest_tensors, expert_tensors, profile_tensors
from moleflow.model.store.tensor_file import StoredSection
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.continual.save import task_info
from moleflow.training.fit.cross_fitting import Split

__all__ = ["random_expert", "synthetic_task", "write_synthetic_checkpoint"]

DISTINCT_EXPERTS = 8

FITTED, HELD_OUT = 100, 30
"""Numbers of good images that a product claims to be fitted to and calibrated by."""


def write_synthetic_checkpoint(path: Path, preset: Preset, products: int) -> None:
    """Write a checkpoint of ``products`` called ``product0000``, ``product0001``, …"""
    config = preset.model
    network = random_backbone(config.backbone)
    backbone = network.net.state_dict()
    base = Base(config).state_dict()
    experts = [random_expert(config, number) for number in range(min(products, DISTINCT_EXPERTS))]
    digests = [digest_tensors(expert) for expert in experts]
    sections: dict[str, Tensors | StoredSection] = {"backbone": backbone, "base": base}
    infos = []
    for index in range(products):
        number = index % DISTINCT_EXPERTS
        info, profile = synthetic_task(config, index, experts[number], digests[number])
        infos.append(info)
        sections |= {f"tasks.{index}.profile": profile, f"tasks.{index}.expert": experts[number]}
    header = Header(
        preset=preset.name,
        config=config,
        preprocessing=network.preprocessing,
        backbone_sha256=digest_tensors(backbone),
        base_sha256=digest_tensors(base),
        tasks=tuple(infos),
    )
    write_checkpoint(path, header, sections)


def random_expert(config: ModelConfig, number: int) -> dict[str, torch.Tensor]:
    """An expert's section; every number differs from its initial value."""
    expert = Expert(config, first=number == 0, seed=number)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return expert_tensors(random_parts(config, expert, generator), config.expert_dtype)


def random_parts(config: ModelConfig, expert: Expert, generator: torch.Generator) -> ProductParts:
    """The expert with a random memory and fusion, as the configuration has them."""
    if config.scoring.cap is None:
        return ProductParts(expert)
    bank, memory = None, config.scoring.memory
    if memory is not None:
        channels = sum(stage_channels(config.backbone))
        dim = min(memory.dim, channels)
        sizes = (channels,), (channels, dim), (memory.prototypes, dim), (memory.pooled, dim)
        mean, axes, *prototypes = (torch.randn(size, generator=generator) for size in sizes)
        bank = MemoryBank.of(mean, axes / channels**0.5, *prototypes)
    kinds = 2 if memory is not None and memory.pooled else 1
    return ProductParts(expert, bank, Fusion(config.scoring, config.backbone.embedding_dim, kinds))


def synthetic_task(
    config: ModelConfig, index: int, expert: Tensors, expert_digest: str
) -> tuple[TaskInfo, dict[str, torch.Tensor]]:
    """Record and profile section of product number ``index``."""
    generator = torch.Generator().manual_seed(1_000_000 + index)
    scores = 10 + torch.rand(4, HELD_OUT, generator=generator)
    held_out = dict(zip(("scores", "peaks", "grounds", "distances"), scores, strict=True))
    profile = profile_tensors(_prototype(config, generator), held_out)
    parts = Split(tuple(range(FITTED)), (tuple(range(FITTED, FITTED + HELD_OUT)),))
    info = task_info(f"product{index:04d}", index, parts, TrainingConfig(altered_copies=0), 1, held_out, profile, {})
    numbers = info.parameters + sum(value.numel() for value in expert.values())
    return info.model_copy(update={"sha256": expert_digest, "parameters": numbers}), profile


def _prototype(config: ModelConfig, generator: torch.Generator) -> Prototype:
    dim = config.backbone.embedding_dim
    prototype = Prototype(dim, config.router.axes, config.router.spread_axes)
    prototype.mean.copy_(torch.randn(dim, generator=generator))
    prototype.axes.copy_(torch.linalg.qr(torch.randn(dim, config.router.axes, generator=generator)).Q)
    prototype.variances.copy_(0.01 + 0.1 * torch.rand(config.router.axes, generator=generator))
    prototype.floor.fill_(max(config.router.relative_floor, 1e-3))
    prototype.spread.copy_(0.1 * torch.randn(dim, config.router.spread_axes, generator=generator))
    return prototype
