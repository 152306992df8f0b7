"""What ``test_backward_kernels`` has Triton's interpreter run."""

from typing import Any
from unittest.mock import patch

import torch
from tiny_model import tiny_config

from moleflow.model.flow.blocks import DIA_COUPLING, MOLE_COUPLING, Coupling  # noqa: F401
from moleflow.model.flow.context import depthwise
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.training.config import TrainingConfig
from moleflow.training.fit import gradients
from moleflow.training.fit.backward.accelerated import accelerated_likelihood
from moleflow.training.fit.backward.convolution import convolve, kernel_gradient, part_count
from moleflow.training.fit.backward.kernels import SUMMED_ROWS, couple, couple_backward, relu_backward

BARE = {"spatial_context_kernel": None, "scale_context_kernel": None}


def check(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert torch.allclose(found.float(), expected.float(), rtol=rtol, atol=rtol * expected.abs().max().item())


def couplings(dim: int, coupling: Coupling, start: int, *, permuted: bool) -> None:
    rows, half = SUMMED_ROWS + 3, dim // 2
    x, s, t = (torch.randn(rows, size, requires_grad=True) for size in (dim, half, half))
    order = torch.randperm(dim) if permuted else torch.arange(dim)
    factors = torch.rand(dim) + 0.5 if permuted else torch.ones(dim)
    changed, kept = x[:, start : start + half], x[:, half - start : dim - start]
    log_scale = coupling.clamp * s.tanh()
    new = changed * log_scale.exp() + t
    y = (torch.cat((kept, new) if start else (new, kept), 1) * factors)[:, order]
    log_det = log_scale.sum(1) + factors.log().sum() + 1

    mixing = (order.int(), factors) if permuted else None
    found_log_det, copy = torch.ones(rows), torch.empty(rows, half, dtype=torch.bfloat16)
    with torch.no_grad():
        found = couple(coupling, x, s, t, found_log_det, start, mixing, copy, half)
    check(found, y)
    check(found_log_det, log_det)
    check(copy, y[:, half:], 1e-2)

    of_y, of_log_det = torch.randn(rows, dim), torch.randn(rows)
    expected = torch.autograd.grad((y, log_det), (x, s, t), (of_y, of_log_det))
    back = (order.argsort().int(), factors) if permuted else None
    sums = torch.empty(2, 2, half)
    with torch.no_grad():
        of_parts = couple_backward(coupling, of_y, of_log_det, x, s, start, back, *sums)
    for one, other in zip((*of_parts, *sums.sum(1)), (*expected, expected[1].sum(0), expected[2].sum(0)), strict=True):
        check(one, other)


def convolutions(images: int, grid: tuple[int, int], channels: int) -> None:
    # The input is half of a wider matrix, as in a block.
    wide, side = torch.randn(images, *grid, 2 * channels), 3
    x, kernel = wide[..., :channels].clone().requires_grad_(), torch.randn(channels, 1, side, side)
    expected = depthwise(x, kernel)
    weights, rows = kernel.flatten(1).T.contiguous(), wide.flatten(0, 2)[:, :channels]
    found = torch.empty(len(rows), channels)
    convolve(rows, weights, grid, found)
    check(found, expected.detach().flatten(0, 2))

    grad = torch.randn_like(expected)
    (of_x,) = torch.autograd.grad(expected, x, grad)
    start, more = torch.randn(len(rows), channels), torch.randn(2, len(rows), channels)
    sums = start.clone()
    convolve(grad.flatten(0, 2), weights, grid, sums, flipped=True, adding=(more[0], more[1]))
    check(sums, of_x.flatten(0, 2) + start + more.sum(0))
    convolve(more[0], None, grid, start, adding=(more[0], more[1]))
    check(sums - start, of_x.flatten(0, 2), 1e-4)


def kernel_gradients(images: int, grid: tuple[int, int], channels: int, parts: int) -> None:
    wide, kernel = torch.randn(images, *grid, 2 * channels), torch.randn(channels, 1, 3, 3, requires_grad=True)
    expected = depthwise(wide[..., :channels], kernel)
    grad, rows = torch.randn_like(expected), wide.flatten(0, 2)[:, :channels]
    (of_kernel,) = torch.autograd.grad(expected, kernel, grad)
    assert part_count(len(rows), grid) == parts
    found = torch.empty(parts, 9, channels)
    kernel_gradient(rows, grad.flatten(0, 2), grid, found)
    check(found.sum(0), of_kernel.flatten(1).T)


def rectifiers() -> None:
    grad, output = torch.randn(SUMMED_ROWS + 3, 150), torch.randn(SUMMED_ROWS + 3, 150).relu()
    expected, sums = grad * (output > 0), torch.empty(2, 150)
    relu_backward(grad, output, sums)
    assert torch.equal(grad, expected)
    check(sums.sum(0), expected.sum(0))


def likelihoods() -> None:
    z, log_det = torch.randn(1, 2, 3, 20, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    weight = torch.randn(1, 2, 3)
    results = [nll(z, log_det) for nll in (accelerated_likelihood, negative_log_likelihood)]
    found, expected = ([nll, *torch.autograd.grad(nll, (z, log_det), weight)] for nll in results)
    for one, other in zip(found, expected, strict=True):
        check(one, other)


def step(*, first: bool, precision: str = "fp32", **flow: Any) -> None:
    """A whole step has the loss and gradients of the plain operators, or in bf16 gradients as near to float32's."""
    sizes: dict[str, Any] = {"coupling_blocks": 1, "dia_blocks": 1, "scale_context_kernel": 3} | flow
    config = tiny_config(dim=20, **sizes)
    base, expert = Base(config, seed=1).requires_grad_(first), Expert(config, first=first, seed=2)
    parameters = [*base.parameters(), *expert.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for block in base.blocks:
            block.channel_scale.uniform_(0.8, 1.25)
    # In bf16 all patches are in the tail, since rounding may choose other ones.
    x, training = torch.randn(2, 1, 3, 20), TrainingConfig(tail_fraction=0.7 if precision == "fp32" else 1.0)
    expert.adapter.fit([x])

    def found(kernels: bool, precision: str) -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.grad = None
        with patch.object(gradients, "runs_kernels", lambda embeddings: kernels):
            values = gradients.add_gradients(base, expert, x, training, precision)
        taken = [parameter.grad for parameter in parameters]
        assert [grad is not None for grad in taken] == [parameter.requires_grad for parameter in parameters]
        return [*values, *(grad for grad in taken if grad is not None)]

    assert gradients.runs_kernels(x)
    plain = found(False, "fp32")
    if precision == "fp32":
        for one, other in zip(found(True, "fp32"), plain, strict=True):
            check(one, other, 3e-5)
        return
    whole, rough, usual = (
        torch.cat([each.flatten() for each in every[2:]])
        for every in (plain, found(True, "bf16"), found(False, "bf16"))
    )
    assert rough.dtype == torch.float32
    assert 0 < (rough - whole).norm() < 3 * (usual - whole).norm()
