"""The whitening adapter: normalise, then scale and shift within bounds."""

import pytest
import torch

from moleflow.model.features.embedding import with_position
from moleflow.model.flow.adapters import WhiteningAdapter


def test_it_normalises_each_patch_then_scales_and_shifts_each_channel() -> None:
    adapter = WhiteningAdapter(8, first=False).double()
    with torch.no_grad():
        adapter.gamma_logit.normal_()
        adapter.beta_logit.normal_()
    x = 5 + 3 * torch.randn(2, 3, 4, 8, dtype=torch.float64)
    coded = with_position(x)
    normal = (coded - coded.mean(-1, keepdim=True)) / (coded.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    gamma = 0.5 + 1.5 / (1 + (-adapter.gamma_logit).exp())
    expected = gamma * normal + 2 * adapter.beta_logit.tanh()
    assert torch.allclose(adapter(x), expected, atol=1e-12)


@pytest.mark.parametrize(("first", "gamma"), [(False, 1.25), (True, 1.0)])
def test_it_starts_without_shift_and_with_the_scale_of_its_place(first: bool, gamma: float) -> None:
    scale, shift = WhiteningAdapter(4, first=first).scale_and_shift()
    assert torch.allclose(scale, torch.full((4,), gamma), atol=4e-3)
    assert not shift.any()


@pytest.mark.parametrize("logit", [-50.0, 50.0])
def test_scale_and_shift_stay_within_their_bounds(logit: float) -> None:
    adapter = WhiteningAdapter(4, first=False)
    with torch.no_grad():
        adapter.gamma_logit.fill_(logit)
        adapter.beta_logit.fill_(logit)
    scale, shift = adapter.scale_and_shift()
    assert ((scale >= 0.5) & (scale <= 2)).all()
    assert (shift.abs() <= 2).all()


def test_an_embedding_that_is_constant_over_its_channels_stays_finite() -> None:
    assert torch.isfinite(WhiteningAdapter(8, first=True)(7 - with_position(torch.zeros(1, 2, 2, 8)))).all()
