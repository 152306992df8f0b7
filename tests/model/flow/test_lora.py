"""A LoRA-linear layer is a plain linear layer with the merged weight, forwards and backwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.flow.lora import LoRADelta, lora_linear

IN, OUT, RANK, ALPHA = 5, 4, 2, 3.0


def layers(*, learning: bool) -> tuple[nn.Linear, LoRADelta, torch.Tensor]:
    """A base, a change whose parts are all different from zero, and an input, in float64."""
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT).double().requires_grad_(learning)
    delta = LoRADelta(IN, OUT, RANK, ALPHA).double()
    with torch.no_grad():
        delta.B.normal_()
        delta.bias.normal_()
    return base, delta, torch.randn(2, 3, 3, IN, dtype=torch.float64, requires_grad=True)


def explicit(x: torch.Tensor, base: nn.Linear, delta: LoRADelta) -> torch.Tensor:
    """The method's formula, left to autograd."""
    return x @ base.weight.T + base.bias + ALPHA / RANK * (x @ delta.A.T @ delta.B.T) + delta.bias


@pytest.mark.parametrize("learning", [False, True])
def test_values_equal_the_formula(learning: bool) -> None:
    base, delta, x = layers(learning=learning)
    assert torch.allclose(lora_linear(x, base, delta), explicit(x, base, delta), atol=1e-12)


@pytest.mark.parametrize("learning", [False, True])
def test_gradients_equal_those_of_the_formula(learning: bool) -> None:
    base, delta, x = layers(learning=learning)
    wanted = [x, delta.A, delta.B, delta.bias, *([base.weight, base.bias] if learning else [])]
    weight = torch.randn(2, 3, 3, OUT, dtype=torch.float64)
    found = torch.autograd.grad((lora_linear(x, base, delta) * weight).sum(), wanted)
    expected = torch.autograd.grad((explicit(x, base, delta) * weight).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("learning", [False, True])
def test_gradients_equal_finite_differences(learning: bool) -> None:
    base, delta, x = layers(learning=learning)
    parts = {name: parameter.detach().clone().requires_grad_() for name, parameter in delta.named_parameters()}
    for name in parts:
        delattr(delta, name)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        for name, value in zip(parts, values, strict=True):
            setattr(delta, name, value)
        return lora_linear(x, base, delta)

    assert torch.autograd.gradcheck(call, (x, *parts.values()))


def test_a_frozen_base_gets_no_gradient() -> None:
    base, delta, x = layers(learning=False)
    lora_linear(x, base, delta).sum().backward()
    assert base.weight.grad is None
    assert base.bias.grad is None


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    base, delta, x = layers(learning=False)
    lora_linear(x.detach(), base, delta).square().sum().backward()
    assert x.grad is None
    assert delta.A.grad is not None


def test_a_new_change_leaves_the_base_as_it_is() -> None:
    base, _, x = layers(learning=False)
    assert torch.equal(
        lora_linear(x, base, LoRADelta(IN, OUT, RANK, ALPHA).double()), F.linear(x, base.weight, base.bias)
    )


def test_a_starts_xavier_uniform_and_the_rest_at_zero() -> None:
    delta = LoRADelta(300, 200, 64, 1.0)
    bound = (6 / (300 + 64)) ** 0.5
    assert delta.A.abs().max() <= bound
    assert delta.A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not delta.B.any()
    assert not delta.bias.any()
    assert delta.scaling == 1 / 64


def test_merged_layers_equal_unmerged_ones() -> None:
    base, delta, x = layers(learning=False)
    assert torch.allclose(F.linear(x, *delta.merge(base)), explicit(x, base, delta), atol=1e-12)


def test_bf16_products_give_gradients_in_float32_near_the_full_ones() -> None:
    base, delta, x = layers(learning=False)
    base, delta, x = base.float(), delta.float(), x.detach().float().requires_grad_()
    weight = torch.randn(2, 3, 3, OUT)
    wanted = [x, delta.A, delta.B, delta.bias]
    with torch.autocast("cpu", torch.bfloat16):
        y = lora_linear(x, base, delta)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad((y.float() * weight).sum(), wanted)
    expected = torch.autograd.grad((explicit(x, base, delta) * weight).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()
