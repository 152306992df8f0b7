"""``moleflow.training.fit.backward.network`` for a GPU: the same function and gradients in fewer and larger launches.

- Elementwise passes and depthwise convolutions are Triton kernels, which read and write every value once.
- Layers of one shape are merged, cast and differentiated together (``moleflow.training.fit.backward.stacks``).
- On a frozen base too, low-rank changes get their gradients from the merged weight's: on a GPU one large product is
  faster than several thin ones.
- Nothing is copied from the host or read there, so that a step can be recorded.

Imported only where Triton kernels run.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

from moleflow.model.flow.context import SpatialContextMixer
from moleflow.model.flow.expert import Base, Expert
from moleflow.training.fit.backward.convolution import convolve, kernel_gradient, part_count
from moleflow.training.fit.backward.kernels import SUMMED_ROWS, likelihood
from moleflow.training.fit.backward.stacked_blocks import Context, Permutation, dia_block, mole_block
from moleflow.training.fit.backward.stacks import StackedContexts, Stacks

__all__ = ["AcceleratedFlow", "accelerated_likelihood"]


class AcceleratedFlow:
    """The flow during one optimizer step, with matrix products in ``dtype``; used like ``network.FusedFlow``, but
    called once a step, on the whole batch."""

    def __init__(self, base: Base, expert: Expert, dtype: torch.dtype) -> None:
        self.base, self.expert, self.dtype = base, expert, dtype
        self.stacks = Stacks()
        pairs = zip(base.blocks, expert.deltas, strict=True)
        self.blocks = [mole_block(self.stacks, shared, subnet) for shared, subnet in pairs]
        self.blocks += [dia_block(self.stacks, block) for block in expert.dia]
        contexts = [block.context for block in base.blocks if block.context is not None]
        with torch.enable_grad():
            built = self.stacks.build(dtype)
            self.contexts = StackedContexts(contexts, dtype) if contexts else None
        built += [] if self.contexts is None else [self.contexts.source]
        # Adapter and mixer are left to autograd.
        direct = [module for module in (expert.adapter, base.mixer) if module is not None]
        self._sources: list[torch.Tensor] = [p for module in direct for p in module.parameters() if p.requires_grad]
        self._leaves = list(self._sources)
        self._learned = [source.detach().requires_grad_(source.requires_grad) for source in built]
        for source, leaf in zip(built, self._learned, strict=True):
            if source.requires_grad:
                self._sources.append(source)
                self._leaves.append(leaf)
        self._set_permutations()

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``(B, H, W, D)`` to latents of that shape, ``log|det J|`` ``(B, H, W)``."""
        x = self.expert.adapter(x)
        if self.base.mixer is not None:
            x = _mixed(self.base.mixer, x)
        return _Blocks.apply(x, self, *self._learned)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        """Gradients, for ``finish``, of a scalar loss computed from the results of the call."""
        return list(torch.autograd.grad(loss, self._leaves))

    def finish(self, gradients: Sequence[torch.Tensor]) -> None:
        """Propagate the gradients of the merged weights to the parameters, and add them there."""
        torch.autograd.backward(self._sources, gradients)

    def reserve(self, rows: int, grid: tuple[int, int]) -> None:
        """Make room for the gradients of weights for so many patches, and give the blocks their contexts."""
        self.stacks.reserve(-(-rows // SUMMED_ROWS))
        if self.contexts is None:
            return
        self.contexts.reserve(part_count(rows, grid))
        for block, (kernel, gradient) in zip(self.blocks, self.contexts.each(), strict=False):  # MoLE blocks come first
            block.context = Context(kernel, gradient)

    def learned_gradients(self) -> list[torch.Tensor | None]:
        """Gradients of the merged weights, once every block has its own."""
        found: list[torch.Tensor | None] = [*self.stacks.gradients()]
        return found if self.contexts is None else [*found, self.contexts.gradient()]

    def _set_permutations(self) -> None:
        if not self.base.blocks:
            return
        sources = torch.stack([block.permutation for block in self.base.blocks])
        channels = torch.arange(sources.shape[1], device=sources.device).expand_as(sources)
        targets = torch.empty_like(sources).scatter_(1, sources, channels)
        pairs = zip(sources.int(), targets.int(), strict=True)
        for block, shared, pair in zip(self.blocks, self.base.blocks, pairs, strict=False):  # MoLE blocks come first
            block.permutation = Permutation(*pair, shared.channel_scale)


class _Blocks(torch.autograd.Function):
    """All blocks."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, flow: AcceleratedFlow, *learned: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.flow, ctx.kept, ctx.grid = flow, [], (x.shape[1], x.shape[2])
        value = x.float().contiguous().flatten(0, -2)
        log_det = value.new_zeros(len(value))
        flow.reserve(len(value), ctx.grid)
        half = value.shape[1] // 2
        seen = [block.room(value, flow.dtype) for block in flow.blocks]
        # Each block writes the half that the next one sees.
        copies = [(room[:, :half], half - block.start) for block, room in zip(flow.blocks, seen, strict=True)]
        first, start = copies[0]
        first.copy_(value[:, start : start + half])
        for block, room, copy in zip_longest(flow.blocks, seen, copies[1:]):
            value, kept = block.forward(value, room, log_det, ctx.grid, copy)
            ctx.kept.append(kept)
        return value.view(x.shape), log_det.view(x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        shape = grads[0].shape
        grad, grad_log_det = grads[0].contiguous().flatten(0, -2), grads[1].contiguous().flatten()
        for block in reversed(ctx.flow.blocks):
            grad = block.backward(grad, grad_log_det, ctx.kept.pop(), ctx.grid)
        return grad.view(shape), None, *ctx.flow.learned_gradients()


class _Mixed(torch.autograd.Function):
    """The mixer's convolution of ``(B, H, W, D)`` by a kernel ``(k·k, D)``, in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        x = x.float().contiguous()
        ctx.save_for_backward(x, kernel)
        ctx.grid = x.shape[1], x.shape[2]
        found = torch.empty_like(x)
        convolve(x.flatten(0, -2), kernel, ctx.grid, found.flatten(0, -2))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        rows, grad = x.flatten(0, -2), grads[0].contiguous().flatten(0, -2)
        of_x, of_kernel = None, None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(x)
            convolve(grad, kernel, ctx.grid, of_x.flatten(0, -2), flipped=True)
        if ctx.needs_input_grad[1]:
            parts = kernel.new_empty((part_count(len(rows), ctx.grid), *kernel.shape))
            kernel_gradient(rows, grad, ctx.grid, parts)
            of_kernel = parts.sum(0)
        return of_x, of_kernel


def _mixed(mixer: SpatialContextMixer, x: torch.Tensor) -> torch.Tensor:
    """``mixer(x)``, in float32 whatever the type of the products: the values are read and written in it anyway."""
    return _Mixed.apply(x, mixer.folded_kernel().flatten(1).T.contiguous())


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z)
        constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return likelihood(z.flatten(0, -2), log_det.flatten(), constant).view(log_det.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * z, -grads[0]


def accelerated_likelihood(z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    """``moleflow.model.flow.likelihood.negative_log_likelihood`` in one pass, for results of ``AcceleratedFlow``."""
    return _Likelihood.apply(z, log_det)
