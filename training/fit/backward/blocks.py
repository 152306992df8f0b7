"""The flow's blocks with hand-written gradients, for ``moleflow.training.fit.backward.network``.

``forward`` takes values ``(B, H, W, D)`` and the log-determinant ``(B, H, W)`` so far, adds to the latter, and returns
the new values and what ``backward`` needs. ``backward`` takes the gradients of both results, and returns the gradients
of the input values and of ``learned``. Both overwrite their arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling, MoLEBase
from moleflow.model.flow.context import depthwise, depthwise_kernel_gradient
from moleflow.model.runtime.device import at_least_float32
from moleflow.training.fit.backward.layers import Gradients, Layer, mlp, mlp_backward

__all__ = ["FusedBlock", "FusedContext", "FusedDIA", "FusedMoLE"]


class FusedBlock(Protocol):
    """One block of the flow in a training step."""

    learned: list[torch.Tensor]

    def forward(self, x: torch.Tensor, log_det: torch.Tensor) -> tuple[torch.Tensor, Any]: ...

    def backward(self, grad: torch.Tensor, grad_log_det: torch.Tensor, kept: Any) -> tuple[torch.Tensor, Gradients]: ...


@dataclass(frozen=True, slots=True)
class FusedContext:
    """The folded kernel ``(D/2, 1, k, k)`` of the scale context, as learned and in the type of the products."""

    learned: torch.Tensor
    used: torch.Tensor


class FusedMoLE:
    """A MoLE block (``benchmarks.shared.reference_flow.mole_block``) with merged weights."""

    def __init__(
        self,
        shift: Sequence[Layer],
        scale: Sequence[Layer],
        context: FusedContext | None,
        base: MoLEBase,
        dtype: torch.dtype,
    ) -> None:
        self.shift, self.scale, self.context, self.dtype = shift, scale, context, dtype
        self.learned = [tensor for layer in (*shift, *scale) for tensor in layer.learned]
        self.learned += [] if context is None else [context.learned]
        self.permutation, self.inverse = base.permutation, base.permutation.argsort()
        self.channel_scale, self.log_scale = base.channel_scale, base.channel_scale.log().sum()
        # On other devices asking would synchronise, which costs more than the pass it could save.
        self.is_scaled = base.channel_scale.device.type != "cpu" or bool((base.channel_scale != 1).any())

    def forward(self, x: torch.Tensor, log_det: torch.Tensor) -> tuple[torch.Tensor, Any]:
        x1, x2 = x.chunk(2, -1)
        x1 = x1.to(self.dtype).contiguous()
        seen = x1 if self.context is None else torch.cat((x1, depthwise(x1, self.context.used)), -1)
        t, for_shift = mlp(self.shift, x1)
        s, for_scale = mlp(self.scale, seen)
        kept = _couple(MOLE_COUPLING, x2, s, t, log_det)
        log_det += self.log_scale
        if self.is_scaled:
            x *= self.channel_scale
        return _select(x, self.permutation), (for_shift, for_scale, kept)

    def backward(self, grad: torch.Tensor, grad_log_det: torch.Tensor, kept: Any) -> tuple[torch.Tensor, Gradients]:
        for_shift, for_scale, coupled = kept
        grad = _select(grad, self.inverse)
        if self.is_scaled:
            grad *= self.channel_scale
        grad1, grad2 = grad.chunk(2, -1)
        grad_s, grad_t = _couple_backward(MOLE_COUPLING, grad2, grad_log_det, coupled, self.dtype)
        found, from_shift = mlp_backward(self.shift, for_shift, grad_t)
        more, from_scale = mlp_backward(self.scale, for_scale, grad_s)
        found += more
        grad1 += from_shift
        if self.context is None:
            grad1 += from_scale
            return grad, found
        direct, context = from_scale.chunk(2, -1)
        context = context.contiguous()
        grad1 += direct
        grad1 += depthwise(context, self.context.used.flip(-1, -2))
        kernel = self.context.learned
        if not kernel.requires_grad:
            return grad, [*found, None]
        of_kernel = depthwise_kernel_gradient(for_shift[0], context, kernel.shape[-1])
        return grad, [*found, of_kernel.to(kernel.dtype)]


class FusedDIA:
    """A block of the deep invertible adapter (``benchmarks.shared.reference_flow.dia_block``)."""

    def __init__(self, shift: Sequence[Layer], scale: Sequence[Layer], *, flip: bool, dtype: torch.dtype) -> None:
        self.shift, self.scale, self.flip, self.dtype = shift, scale, flip, dtype
        self.learned = [tensor for layer in (*shift, *scale) for tensor in layer.learned]

    def forward(self, x: torch.Tensor, log_det: torch.Tensor) -> tuple[torch.Tensor, Any]:
        given, changed = self._halves(x)
        given = given.to(self.dtype).contiguous()
        t, for_shift = mlp(self.shift, given)
        s, for_scale = mlp(self.scale, given)
        return x, (for_shift, for_scale, _couple(DIA_COUPLING, changed, s, t, log_det))

    def backward(self, grad: torch.Tensor, grad_log_det: torch.Tensor, kept: Any) -> tuple[torch.Tensor, Gradients]:
        for_shift, for_scale, coupled = kept
        grad_given, grad_changed = self._halves(grad)
        grad_s, grad_t = _couple_backward(DIA_COUPLING, grad_changed, grad_log_det, coupled, self.dtype)
        found, from_shift = mlp_backward(self.shift, for_shift, grad_t)
        more, from_scale = mlp_backward(self.scale, for_scale, grad_s)
        grad_given += from_shift
        grad_given += from_scale
        return grad, [*found, *more]

    def _halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The unchanged half and the transformed one."""
        first, second = x.chunk(2, -1)
        return (second, first) if self.flip else (first, second)


def _select(x: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2).index_select(1, permutation).view(x.shape)


def _couple(
    coupling: Coupling, x2: torch.Tensor, s: torch.Tensor, t: torch.Tensor, log_det: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x2·exp(ŝ) + t`` in place of ``x2``; ``s`` includes its slope. Returns what ``_couple_backward`` needs."""
    bounded = at_least_float32(s).tanh_()
    log_det.add_(bounded.sum(-1), alpha=coupling.clamp)
    product = (bounded * coupling.clamp).exp_().mul_(x2)
    torch.add(product, t, out=x2)
    return bounded, product


def _couple_backward(
    coupling: Coupling,
    grad: torch.Tensor,
    grad_log_det: torch.Tensor,
    kept: tuple[torch.Tensor, torch.Tensor],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``s`` and ``t`` in ``dtype``; turns ``grad``, that of the output, into that of ``x2`` in place."""
    bounded, product = kept
    grad_t = grad.to(dtype, copy=True)  # grad itself changes below
    grad_s = torch.addcmul(grad_log_det.unsqueeze(-1), grad, product)
    slope = torch.addcmul(bounded.new_full((), coupling.clamp), bounded, bounded, value=-coupling.clamp)
    grad *= (bounded * coupling.clamp).exp_()
    return grad_s.mul_(slope).to(dtype), grad_t
