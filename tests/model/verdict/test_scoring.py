"""Likelihood and image score against independent references."""

import pytest
import torch
from torch.distributions import Normal

from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.verdict.scoring import image_score


def test_the_nll_is_a_standard_normal_with_the_log_determinant() -> None:
    z, log_det = torch.randn(2, 3, 4, 16, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    expected = -(Normal(0.0, 1.0).log_prob(z).sum(-1) + log_det)
    assert torch.allclose(negative_log_likelihood(z, log_det), expected, atol=1e-12)


def test_the_image_score_is_the_mean_of_the_three_highest_patches() -> None:
    nll = torch.tensor([[[1.0, 9.0], [4.0, 5.0]], [[-1.0, -9.0], [-4.0, -5.0]]])
    assert image_score(nll).tolist() == pytest.approx([6.0, -10 / 3])


def test_top_k_above_the_number_of_patches_averages_all() -> None:
    assert image_score(torch.tensor([[[1.0, 2.0]]]), top_k=5).tolist() == [1.5]


@pytest.mark.parametrize("value", [-1e6, 1e9])
def test_scores_are_never_clamped(value: float) -> None:
    assert image_score(torch.full((1, 4, 4), value)).item() == value
