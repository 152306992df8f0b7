"""A layer with a low-rank change is a plain linear layer with the merged weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.flow.lora import LoRADelta

IN, OUT, RANK, ALPHA = 5, 4, 2, 3.0


def test_the_merged_layer_is_the_methods_formula() -> None:
    torch.manual_seed(0)
    base, delta = nn.Linear(IN, OUT).double(), LoRADelta(IN, OUT, RANK, ALPHA).double()
    x = torch.randn(2, 3, IN, dtype=torch.float64)
    with torch.no_grad():
        delta.B.normal_()
        delta.bias.normal_()
    formula = x @ base.weight.T + base.bias + ALPHA / RANK * (x @ delta.A.T @ delta.B.T) + delta.bias
    assert torch.allclose(F.linear(x, *delta.merge(base)), formula, atol=1e-12)


def test_a_new_change_leaves_the_base_as_it_is() -> None:
    base = nn.Linear(IN, OUT)
    weight, bias = LoRADelta(IN, OUT, RANK, ALPHA).merge(base)
    assert torch.equal(weight, base.weight)
    assert torch.equal(bias, base.bias)


def test_a_starts_xavier_uniform_and_the_rest_at_zero() -> None:
    delta = LoRADelta(300, 200, 64, 1.0)
    bound = (6 / (300 + 64)) ** 0.5
    assert delta.A.abs().max() <= bound
    assert delta.A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not delta.B.any()
    assert not delta.bias.any()
    assert delta.scaling == 1 / 64
