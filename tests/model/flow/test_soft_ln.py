"""The SoftLN adapter computes its formula, starts with the embeddings as they are, and folds to the same function."""

import pytest
import torch
import torch.nn.functional as F
from tiny_model import randomized

from moleflow.model.features.embedding import with_position
from moleflow.model.flow.adapters import SoftLN


def embeddings() -> torch.Tensor:
    return 3 * torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("first", [True, False])
def test_it_computes_the_formula(first: bool) -> None:
    adapter, x = randomized(SoftLN(16, first=first).double(), 1), embeddings().double()
    coded = inner = with_position(x)
    if adapter.norm_logit is not None:
        weight = adapter.norm_logit.sigmoid()
        inner = (1 - weight) * coded + weight * F.layer_norm(coded, (16,))
    expected = adapter.gamma * (inner + adapter.gate * adapter.mlp(inner)) + adapter.beta
    assert torch.allclose(adapter(x), expected, atol=1e-12)


def test_a_later_task_starts_with_the_position_coded_embeddings_as_they_are() -> None:
    assert torch.equal(SoftLN(16, first=False)(embeddings()), with_position(embeddings()))


def test_the_first_task_starts_with_a_hundredth_of_a_layer_norm() -> None:
    x = with_position(embeddings())
    expected = 0.99 * x + 0.01 * F.layer_norm(x, (16,))
    assert torch.allclose(SoftLN(16, first=True)(embeddings()), expected, atol=1e-6)


def test_only_the_first_task_has_a_layer_norm_to_learn() -> None:
    first, later = (set(SoftLN(16, first=first).state_dict()) for first in (True, False))
    assert first - later == {"norm_logit"}
    assert not later - first


def test_folding_gives_a_copy_whose_matrices_alone_take_another_type() -> None:
    adapter = randomized(SoftLN(16, first=True), 1)
    folded = adapter.folded(torch.bfloat16)
    assert {value.dtype for value in folded.mlp.parameters()} == {torch.bfloat16}
    assert {folded.gamma.dtype, folded.beta.dtype, folded.gate.dtype} == {torch.float32}
    same = adapter.folded(torch.float32)
    assert torch.equal(same(embeddings()), adapter(embeddings()))
    assert all(one is not other for one, other in zip(same.parameters(), adapter.parameters(), strict=True))
