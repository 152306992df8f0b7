"""The fitted adapter decorrelates the patches of its task, keeps to float32, and folds to the same function."""

import torch

from moleflow.model.features.embedding import with_position
from moleflow.model.flow.adapters import VARIANCE_FLOOR, ZCAAdapter


def patches(count: int = 6, dim: int = 8) -> torch.Tensor:
    """Embeddings ``(count, 5, 4, dim)`` with correlated channels, far from zero, of very different variances."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=generator) * torch.logspace(0, 1, dim)
    return 20 + torch.randn(count, 5, 4, dim, generator=generator) @ mixing


def whitened(adapter: ZCAAdapter, x: torch.Tensor) -> torch.Tensor:
    """What the adapter makes of ``x``, before the position code, as ``(n, D)``."""
    return (adapter(x) - with_position(torch.zeros_like(x))).flatten(0, -2)


def test_patches_of_the_task_come_out_uncorrelated_with_mean_zero_and_what_the_floor_leaves_of_unit_variance() -> None:
    x = patches()
    adapter = ZCAAdapter(8)
    adapter.fit(x.split(4))
    found = whitened(adapter.double(), x.double())
    assert found.mean(0).abs().max() < 1e-4
    variances, axes = torch.linalg.eigh(x.double().flatten(0, -2).T.cov(correction=0))
    kept = variances / (variances + VARIANCE_FLOOR * variances.mean())
    assert torch.allclose(found.T.cov(correction=0), (axes * kept) @ axes.T, atol=1e-4)


def test_the_matrix_is_symmetric_so_that_channels_keep_their_meaning() -> None:
    adapter = ZCAAdapter(8)
    adapter.fit([patches()])
    assert torch.allclose(adapter.matrix, adapter.matrix.T, atol=1e-6)
    assert (torch.linalg.eigvalsh(adapter.matrix) > 0).all()


def test_the_fit_does_not_depend_on_how_the_images_are_batched() -> None:
    one, other = ZCAAdapter(8), ZCAAdapter(8)
    one.fit([patches()])
    other.fit(patches().split(1))
    assert torch.allclose(one.mean, other.mean, atol=1e-5)
    assert torch.allclose(one.matrix, other.matrix, atol=1e-5)


def test_a_direction_that_good_patches_never_use_stays_finite() -> None:
    x = patches()
    x[..., 3] = 7.0
    adapter = ZCAAdapter(8)
    adapter.fit([x])
    assert torch.isfinite(adapter(x)).all()
    x[..., 3] += 1e-3
    assert torch.isfinite(adapter(x)).all()


def test_products_in_bf16_leave_it_in_float32() -> None:
    x = patches()
    adapter = ZCAAdapter(8)
    adapter.fit([x])
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, adapter(x))


def test_nothing_in_it_learns_by_gradient() -> None:
    assert not list(ZCAAdapter(8).parameters())


def test_folding_gives_a_copy_of_the_same_function() -> None:
    adapter = ZCAAdapter(8)
    adapter.fit([patches()])
    folded = adapter.folded(torch.bfloat16)
    assert torch.equal(folded(patches()), adapter(patches()))
    before = folded(patches())
    adapter.mean.add_(1)
    assert torch.equal(folded(patches()), before)
