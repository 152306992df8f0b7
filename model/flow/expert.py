"""The trainable network: a base that all tasks share, and one expert per task (method, sections 3 and 4)."""

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import torch
from torch import nn

from moleflow.model.config import Adapter, ModelConfig
from moleflow.model.flow.adapters import InputAdapter, SoftLN, WhiteningAdapter, ZCAAdapter
from moleflow.model.flow.blocks import DIABlock, MoLEBase
from moleflow.model.flow.context import SpatialContextMixer
from moleflow.model.flow.subnet import task_subnet

__all__ = ["Base", "Expert", "flow_input", "module_list"]

M = TypeVar("M", bound=nn.Module)

_ADAPTERS: dict[Adapter, Callable[..., InputAdapter]] = {
    "whitening": WhiteningAdapter,
    "soft_ln": SoftLN,
    "zca": ZCAAdapter,
}


def module_list(modules: Iterable[M]) -> list[M]:
    """An ``nn.ModuleList`` whose items keep their type for the type checker."""
    return cast("list[M]", nn.ModuleList(modules))


class Base(nn.Module):
    """The shared part: the spatial mixer and the base of the MoLE blocks.

    Learned with the first task, then frozen, unless ``FlowConfig.sharing`` says otherwise. ``seed`` determines the
    permutations and the initial values.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        dim = config.backbone.embedding_dim
        with _seeded(seed):
            kernel = config.flow.spatial_context_kernel
            self.mixer = None if kernel is None else SpatialContextMixer(dim, kernel)
            self.blocks = module_list(MoLEBase(dim, config.flow, generator) for _ in range(config.flow.coupling_blocks))


class Expert(nn.Module):
    """The part of one task: its input adapter, its part of each MoLE block's subnet, and its deep invertible adapter.

    ``first`` selects the initial adapter of the task that learns the base; ``seed`` determines the initial values.
    """

    def __init__(self, config: ModelConfig, *, first: bool, seed: int = 0) -> None:
        super().__init__()
        dim = config.backbone.embedding_dim
        with _seeded(seed):
            self.adapter = _ADAPTERS[config.flow.adapter](dim, first=first)
            self.deltas = module_list(task_subnet(dim, config.flow) for _ in range(config.flow.coupling_blocks))
            self.dia = module_list(DIABlock(dim, flip=bool(i % 2)) for i in range(config.flow.dia_blocks))

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """Round every parameter to ``dtype``, so that storing it in that type loses nothing.

        Buffers, such as a whitening matrix, are stored in their own type.
        """
        for value in self.parameters():
            value.copy_(value.to(dtype))


def flow_input(base: Base, expert: Expert, x: torch.Tensor) -> torch.Tensor:
    """Embeddings ``(B, H, W, D)`` to the input of the first block: adapted, with position, then mixed if configured."""
    x = expert.adapter(x)
    return x if base.mixer is None else base.mixer(x)


class _seeded:  # noqa: N801 - reads as a verb: `with _seeded(7):`
    """Draw initial values from a seed of their own, and restore the caller's random state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
