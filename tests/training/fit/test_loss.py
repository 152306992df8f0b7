"""The tail-aware loss: mean likelihood, weight on each image's worst patches, and a brake on the volume."""

import pytest
import torch

from moleflow.training.config import TrainingConfig
from moleflow.training.fit.loss import tail_aware_loss

NLL = torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOG_DET = torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_without_a_tail_weight_the_loss_is_the_mean_likelihood() -> None:
    config = TrainingConfig(tail_weight=0, lambda_logdet=0)
    assert tail_aware_loss(NLL, LOG_DET, config).item() == pytest.approx(NLL.mean().item())


def test_the_loss_is_the_methods_formula() -> None:
    # 2 % of 100 patches: the two worst of each image, averaged over the images.
    worst = NLL.flatten(1).sort(descending=True).values[:, :2].mean()
    expected = 0.3 * NLL.mean() + 0.7 * worst + 1e-4 * (LOG_DET**2).mean()
    assert tail_aware_loss(NLL, LOG_DET, TrainingConfig()).item() == pytest.approx(expected.item())


def test_every_image_has_a_tail_of_its_own() -> None:
    # The first image is worse throughout; the worst patch of the second counts as much as its worst.
    nll = torch.tensor([[[100.0, 101.0]], [[0.0, 1.0]]])
    config = TrainingConfig(tail_weight=1, tail_fraction=0.5, lambda_logdet=0)
    assert tail_aware_loss(nll, torch.zeros(2, 1, 2), config).item() == 51


def test_the_tail_has_at_least_one_patch() -> None:
    config = TrainingConfig(tail_weight=1, tail_fraction=0.02, lambda_logdet=0)
    assert tail_aware_loss(torch.tensor([[[1.0, 4.0]]]), torch.zeros(1, 1, 2), config).item() == 4


def test_a_28_by_28_grid_has_a_tail_of_fifteen_patches() -> None:
    nll = torch.randn(1, 28, 28, requires_grad=True)
    tail_aware_loss(nll, torch.zeros(1, 28, 28), TrainingConfig(tail_weight=1, lambda_logdet=0)).backward()
    assert nll.grad is not None
    assert int((nll.grad > 0).sum()) == 15


def test_a_patch_of_the_tail_weighs_w_over_the_tails_size_more_than_another() -> None:
    nll = NLL.clone().requires_grad_()
    tail_aware_loss(nll, LOG_DET, TrainingConfig()).backward()
    assert nll.grad is not None
    weights = nll.grad.flatten(1).sort(descending=True).values
    others = 0.3 / 300
    assert torch.allclose(weights[:, :2], torch.tensor(others + 0.7 / 6, dtype=torch.float64))
    assert torch.allclose(weights[:, 2:], torch.tensor(others, dtype=torch.float64))


def test_the_brake_pulls_the_log_determinant_towards_zero_from_both_sides() -> None:
    log_det = LOG_DET.clone().requires_grad_()
    tail_aware_loss(NLL, log_det, TrainingConfig(lambda_logdet=0.5)).backward()
    assert log_det.grad is not None
    assert torch.allclose(log_det.grad, 0.5 * 2 * LOG_DET / 300)


def test_patches_that_do_not_count_have_no_part_in_the_loss() -> None:
    patches = torch.tensor([3, 17, 40, 41, 98])
    nll, log_det = (values.flatten(1)[:, patches].unsqueeze(1) for values in (NLL, LOG_DET))
    found = tail_aware_loss(NLL, LOG_DET, TrainingConfig(), patches)
    assert found.item() == pytest.approx(tail_aware_loss(nll, log_det, TrainingConfig()).item())
