"""A training step's flow computes what the model's does, and gives its parameters the same gradients."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_model import tiny_config

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.config import FlowConfig, ModelConfig
from moleflow.model.flow.context import depthwise, depthwise_kernel_gradient
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.training.fit.backward.network import FusedFlow

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "without context": {"scale_context_kernel": None},
    "without mixer": {"spatial_context_kernel": None},
    "dense layers": {"subnet": "linear"},
    "DIA alone": {"coupling_blocks": 0},
    "MoLE alone": {"dia_blocks": 0},
    "SoftLN": {"adapter": "soft_ln"},
    "ZCA": {"adapter": "zca"},
}


def parts(
    changes: Mapping[str, Any] = {}, *, first: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[Base, Expert]:
    """A base and an expert none of whose numbers is at its start."""
    usual = tiny_config()
    flow = FlowConfig.model_validate(usual.flow.model_dump() | dict(changes))
    config = ModelConfig.model_validate(usual.model_dump() | {"flow": flow})
    base, expert = Base(config, seed=1).to(dtype), Expert(config, first=first, seed=2).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (*base.parameters(), *expert.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return base.requires_grad_(first), expert


def embeddings(dtype: torch.dtype = torch.float64, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 5, 16, generator=torch.Generator().manual_seed(4), dtype=dtype)


def gradients(base: Base, expert: Expert) -> dict[str, torch.Tensor | None]:
    named = {
        f"{part}.{name}": p
        for part, module in (("base", base), ("expert", expert))
        for name, p in module.named_parameters()
    }
    found = {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = None
    return found


def loss(z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    nll = negative_log_likelihood(z, log_det)
    return (nll * torch.linspace(0.5, 1, nll.numel(), dtype=nll.dtype).view(nll.shape)).sum() + log_det.square().sum()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients_are_those_of_the_models_flow(name: str, first: bool) -> None:
    base, expert = parts(VARIANTS[name], first=first)
    x = embeddings()
    expert.adapter.fit([x])
    expected = flow_forward(base, expert, x)
    loss(*expected).backward()
    wanted = gradients(base, expert)
    flow = FusedFlow(base, expert, torch.float64)
    found = flow(x)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    flow.finish(flow.gradients(loss(*found)))
    for key, gradient in gradients(base, expert).items():
        want = wanted[key]
        assert (gradient is None) == (want is None), key
        assert gradient is None or want is None or torch.allclose(gradient, want, atol=1e-9), key


def test_a_fixed_scale_of_the_channels_counts() -> None:
    base, expert = parts()
    for block in base.blocks:
        block.channel_scale.uniform_(0.5, 2)
    x = embeddings()
    expected, found = flow_forward(base, expert, x), FusedFlow(base, expert, torch.float64)(x)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    wanted = torch.autograd.grad(loss(*expected), base.mixer.kernel if base.mixer else [])
    assert torch.allclose(torch.autograd.grad(loss(*found), base.mixer.kernel if base.mixer else [])[0], wanted[0])


def test_bf16_products_give_float32_gradients_near_the_full_ones() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        base, expert = parts(dtype=torch.float32)
        flow = FusedFlow(base, expert, dtype)
        z, log_det = flow(embeddings(torch.float32))
        assert z.dtype == log_det.dtype == torch.float32
        flow.finish(flow.gradients(loss(z, log_det)))
        found.append(torch.cat([g.flatten() for g in gradients(base, expert).values() if g is not None]))
    assert found[1].dtype == torch.float32
    assert 0 < (found[0] - found[1]).norm() < 0.05 * found[0].norm()


@pytest.mark.parametrize("side", [3, 5])
def test_the_kernels_gradient_is_that_of_the_depthwise_convolution(side: int) -> None:
    x, kernel = embeddings(), torch.randn(16, 1, side, side, dtype=torch.float64, requires_grad=True)
    y = depthwise(x, kernel)
    weight = torch.randn_like(y)
    (expected,) = torch.autograd.grad((y * weight).sum(), kernel)
    assert torch.allclose(depthwise_kernel_gradient(x, weight, side), expected, atol=1e-12)
