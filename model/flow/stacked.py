"""The flows of several products side by side on a GPU: a batch of many products takes as many launches as one.

The weights of merged experts (``moleflow.model.flow.merged``) are stacked, each in a *slot*, and every kernel reads
those of each image's slot. Elementwise passes, which take longer on a GPU than the matrix products, are joined: bias
and ReLU with the product before them; coupling, log-determinant, permutation, the cast for the next product and, in
the last block, the likelihood are one pass.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from moleflow.model.features.embedding import position_code
from moleflow.model.flow.adapters import FixedLayerNorm, ZCAAdapter
from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling
from moleflow.model.flow.kernels import Halves, couple, depthwise, linear
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.runtime.fused import FusedLinear

__all__ = ["StackedFlow"]

FIRST, SECOND = 0, 1
"""The halves of the channels."""


class StackedFlow:
    """Embeddings ``(B, H, W, D)`` float32 and the slot of each image ``(B,)`` int32 to the NLL of each patch.

    Args:
        like: an expert of the kind that ``put`` will get; its shared layers are used for all.
        slots: how many experts there is room for.
    """

    def __init__(self, like: MergedExpert, slots: int) -> None:
        first = like.blocks[0].input
        self._dim, self._dtype, device = 2 * first.weight.shape[1], first.dtype, first.weight.device
        adapter = like.adapter
        assert isinstance(adapter, FixedLayerNorm | ZCAAdapter)  # by moleflow.model.store.experts.can_stack
        self._whitens = isinstance(adapter, ZCAAdapter)
        self._adapters = [value.new_zeros(slots, *value.shape) for value in _adapter_values(like)]
        self._mixer = None if like.mixer is None else _taps(like.mixer.kernel)
        self._contexts = [None if block.context is None else _taps(block.context.kernel) for block in like.blocks]
        self._sources = [block.permutation for block in like.blocks]
        self._layers = [_StackedLinear(layers, slots) for layers in _layers(like)]
        self._dia_blocks = len(like.dia)
        self._device = device
        self._positions: dict[tuple[int, int], torch.Tensor] = {}

    def put(self, slot: int, merged: MergedExpert) -> None:
        """Copy the weights of ``merged`` to ``slot``."""
        for own, given in zip(self._adapters, _adapter_values(merged), strict=True):
            own[slot].copy_(given)
        for layer, layers in zip(self._layers, _layers(merged), strict=True):
            layer.put(slot, layers)

    def __call__(self, embeddings: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        batch, height, width, dim = embeddings.shape
        half, rows = dim // 2, batch * height * width
        x = torch.empty(rows, dim, device=embeddings.device)
        other = torch.empty_like(x)
        # The inputs of the next block's products: the half it reads, and the context of that.
        read = torch.empty(rows, dim, device=x.device, dtype=self._dtype)
        copy, context = read[:, :half], read[:, half:]
        self._start(embeddings, slots.long(), x, copy)
        log_det, nll = x.new_zeros(rows), x.new_empty(rows)
        layers = iter(self._layers)
        constant = 0.5 * dim * math.log(2 * math.pi)
        couplings = self._couplings()
        for number, (coupling, halves) in enumerate(couplings):
            if number < len(self._contexts):
                kernel, sources = self._contexts[number], self._sources[number]
                scale, shift = self._mole(layers, slots, read, kernel, (height, width), context)
            else:
                sources = None
                scale, shift = self._dia(layers, slots, copy)
            last = (nll, constant) if number == len(couplings) - 1 else None
            couple(x, scale, shift, log_det, other, copy, halves, coupling.clamp, sources, last)
            x, other = other, x
        return nll.view(batch, height, width)

    def _couplings(self) -> list[tuple[Coupling, Halves]]:
        """The couplings in order, with the half that each changes; it reads the other one."""
        reads = [FIRST] * len(self._contexts) + [number % 2 for number in range(self._dia_blocks)]
        kinds = [MOLE_COUPLING] * len(self._contexts) + [DIA_COUPLING] * self._dia_blocks
        following = [*reads[1:], FIRST]
        return [
            (kind, Halves(changed=1 - now, next_read=after))
            for kind, now, after in zip(kinds, reads, following, strict=True)
        ]

    def _start(self, embeddings: torch.Tensor, slots: torch.Tensor, x: torch.Tensor, copy: torch.Tensor) -> None:
        """Adapter, position and mixer: fill the first block's input ``x``, and ``copy`` with its first half."""
        _, height, width, dim = embeddings.shape
        position = self._position(height, width)
        first, second = (values[slots] for values in self._adapters)
        if self._whitens:
            centred = (embeddings - first[:, None, None]).flatten(1, 2)
            adapted = torch.bmm(centred, second.mT).view(embeddings.shape) + position
        else:
            normalised = F.layer_norm(embeddings + position, (dim,))
            adapted = torch.addcmul(second[:, None, None], normalised, first[:, None, None])
        rows = adapted.view(-1, dim)
        if self._mixer is None:
            x.copy_(rows)
            copy.copy_(rows[:, : dim // 2])
        else:
            depthwise(rows, self._mixer, (height, width), x, copy)

    def _position(self, height: int, width: int) -> torch.Tensor:
        """The position code on the device, copied there once."""
        size = height, width
        if size not in self._positions:
            self._positions[size] = position_code(height, width, self._dim).to(self._device)
        return self._positions[size]

    def _mole(
        self,
        layers: "Iterator[_StackedLinear]",
        slots: torch.Tensor,
        read: torch.Tensor,
        kernel: torch.Tensor | None,
        grid: tuple[int, int],
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of a MoLE block, given what it reads and, to be filled, the context beside it."""
        half = read.shape[1] // 2
        if kernel is None:
            hidden = next(layers)(read[:, :half], slots, relu=True)
            to_shift, to_scale = hidden.chunk(2, -1)
        else:
            depthwise(read[:, :half], kernel, grid, context)
            to_shift = next(layers)(read[:, :half], slots, relu=True)
            to_scale = next(layers)(read, slots, relu=True)
        return next(layers)(to_scale, slots), next(layers)(to_shift, slots)

    def _dia(
        self, layers: "Iterator[_StackedLinear]", slots: torch.Tensor, read: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of a DIA block."""
        to_scale, to_shift = next(layers)(read, slots, relu=True).chunk(2, -1)
        to_scale, to_shift = next(layers)(to_scale, slots, relu=True), next(layers)(to_shift, slots, relu=True)
        return next(layers)(to_scale, slots), next(layers)(to_shift, slots)


class _StackedLinear:
    """A linear layer of every slot; several that read the same input are joined to one."""

    def __init__(self, like: "Layers", slots: int) -> None:
        weight = like[0].weight
        outputs = sum(len(layer.weight) for layer in like)
        self.weights = weight.new_zeros(slots, outputs, weight.shape[1])
        self.biases = weight.new_zeros(slots, outputs)

    def put(self, slot: int, layers: "Layers") -> None:
        self.weights[slot].copy_(torch.cat([layer.weight for layer in layers]))
        self.biases[slot].copy_(torch.cat([layer.bias for layer in layers if layer.bias is not None]))

    def __call__(self, x: torch.Tensor, slots: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        found = x.new_empty(len(x), self.weights.shape[1])
        linear(x, self.weights, self.biases, slots, found, relu=relu)
        return found


Layers = tuple[FusedLinear, ...]


def _layers(merged: MergedExpert) -> list[Layers]:
    """The layers of an expert in the order in which they are used."""
    found: list[Layers] = []
    for block in merged.blocks:
        context = () if block.context is None else ((block.scale_input,),)
        found += [(block.input,), *context, (block.scale,), (block.shift,)]
    for adapter in merged.dia:
        found += [(adapter.scale_in, adapter.shift_in)]
        found += [(layer,) for layer in (adapter.scale_middle, adapter.shift_middle, adapter.scale, adapter.shift)]
    return found


def _adapter_values(merged: MergedExpert) -> tuple[torch.Tensor, torch.Tensor]:
    adapter = merged.adapter
    if isinstance(adapter, ZCAAdapter):
        return adapter.mean, adapter.matrix
    assert isinstance(adapter, FixedLayerNorm)  # by moleflow.model.store.experts.can_stack
    return adapter.scale, adapter.shift


def _taps(kernel: torch.Tensor) -> torch.Tensor:
    """A depthwise kernel ``(C, 1, k, k)`` as ``(k·k, C)``."""
    return kernel.flatten(1).T.contiguous()
