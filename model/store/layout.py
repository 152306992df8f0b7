"""The tensors that a configuration implies, per section, without allocating any of them.

A file's table is compared with them before anything is allocated, so a checkpoint never takes more memory than its own
bytes, whatever its header says.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping

import torch

from moleflow.model.config import BackboneConfig, ExpertDtype, ModelConfig, ScoringConfig
from moleflow.model.errors import one_line
from moleflow.model.features.backbone import meta_network
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.routing.router import Prototype
from moleflow.model.store.tensor_table import Spec
from moleflow.model.verdict.results import TaskInfo

__all__ = [
    "HELD_OUT",
    "INSPECTED",
    "STORED_TYPES",
    "Layout",
    "backbone_layout",
    "base_layout",
    "differences",
    "expert_layout",
    "profile_layout",
    "scoring_layout",
]

STORED_TYPES: dict[ExpertDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_OWN_RANKS = {"axes": "axes", "spread": "spread_axes"}
"""Tensors of a prototype whose last dimension depends on its images, and the router setting that bounds it."""

HELD_OUT, INSPECTED = "held_out", "inspected"
"""Prefixes of numbers of good images in a profile: those of all that was learned, and those that calibrate an area."""

Layout = Mapping[str, Spec]
"""Type and shape of each tensor of a section, by its name."""


def backbone_layout(config: BackboneConfig) -> Layout:
    """The section ``backbone``. Raises ``BackboneError`` if timm has no such network."""
    return _specs(meta_network(config).state_dict())


@functools.lru_cache
def base_layout(config: ModelConfig) -> Layout:
    """The section ``base``; empty if every task has its own base."""
    return {} if config.flow.sharing == "separated" else _own_base_layout(config)


def _own_base_layout(config: ModelConfig) -> dict[str, Spec]:
    with torch.device("meta"):
        return _specs(Base(config).state_dict())


@functools.lru_cache
def expert_layout(config: ModelConfig, *, first: bool) -> Layout:
    """The flow's part of the section ``tasks.INDEX.expert``; ``first`` if the task starts a new base."""
    with torch.device("meta"):
        expert = Expert(config, first=first)
    learned = {key for key, _ in expert.named_parameters()}
    stored = STORED_TYPES[config.expert_dtype]
    state = {key: value.to(stored) if key in learned else value for key, value in expert.state_dict().items()}
    own = _own_base_layout(config) if config.flow.sharing == "separated" else {}
    return _specs(state) | {f"base.{key}": spec for key, spec in own.items()}


def scoring_layout(config: ScoringConfig, found: Iterable[Spec]) -> Layout:
    """The scoring's part of the section ``tasks.INDEX.expert``: the memory and the fusion.

    The numbers of channels, components and prototypes are taken from the tensors ``found``, up to the configured ones.
    The channels are compared with the backbone's when the product is loaded.
    """
    if config.cap is None:
        return {}
    shapes = {spec.key: spec.shape for spec in found if len(spec.shape) == 2}
    with torch.device("meta"):
        if config.memory is None:
            return _specs(Fusion(config, 1).state_dict(prefix="fusion."))
        channels, dim = shapes.get("memory.axes", (1, 1))
        count, pooled = (shapes.get(f"memory.{name}", (0, 1))[0] for name in ("prototypes", "pooled"))
        memory = config.memory
        pooled = min(pooled, memory.pooled)
        sizes = max(channels, 1), max(min(dim, memory.dim), 1), max(min(count, memory.prototypes), 1), pooled
        layout = _specs(MemoryBank(*sizes).state_dict(prefix="memory."))
        layout |= _specs(Fusion(config, 1, kinds=2 if pooled else 1).state_dict(prefix="fusion."))
    return layout


def profile_layout(config: ModelConfig, info: TaskInfo, found: Iterable[Spec]) -> Layout:
    """The section ``tasks.INDEX.profile``.

    The prototype's ranks and the number of distances are taken from the tensors ``found``, up to the router's limits
    and the task's number of images.
    """
    shapes = {spec.key: spec.shape for spec in found}
    ranks = [
        min((shapes.get(f"prototype.{key}") or (0,))[-1], getattr(config.router, most))
        for key, most in _OWN_RANKS.items()
    ]
    most = info.train_images + info.held_out_images
    counts = dict.fromkeys(("scores", "peaks"), info.held_out_images * (1 + info.altered_copies))
    counts["grounds"] = info.held_out_images
    counts["distances"] = min((shapes.get(f"{HELD_OUT}.distances") or (0,))[0], most)
    values = {f"{HELD_OUT}.{key}": count for key, count in counts.items()}
    if info.area is not None and info.area.calibration_images is not None:
        count = info.area.calibration_images * (1 + info.altered_copies)
        values |= {f"{INSPECTED}.{key}": count for key in ("scores", "peaks")}
    prototype = _prototype_layout(config.backbone.embedding_dim, *ranks)
    return prototype | {key: Spec(key, "F32", (count,)) for key, count in values.items()}


@functools.lru_cache
def _prototype_layout(dim: int, axes: int, spread_axes: int) -> dict[str, Spec]:
    with torch.device("meta"):
        return _specs(Prototype(dim, axes, spread_axes).state_dict(prefix="prototype."))


def differences(found: Iterable[Spec], wanted: Layout) -> Iterator[str]:
    """The differences of a section in a file from the layout it should have, in words."""
    seen = set()
    for spec in found:
        seen.add(spec.key)
        right = wanted.get(spec.key)
        if right is None:
            yield f"tensor {one_line(spec.key)!r} does not belong there"
        elif (spec.dtype, spec.shape) != (right.dtype, right.shape):
            yield (
                f"tensor {spec.key!r} is {spec.dtype} {one_line(list(spec.shape))} and should be {right.dtype} "
                f"{list(right.shape)}"
            )
    for key in wanted:
        if key not in seen:
            yield f"tensor {key!r} is missing"


def _specs(state: Mapping[str, torch.Tensor]) -> dict[str, Spec]:
    return {key: Spec.of(key, value) for key, value in state.items()}
