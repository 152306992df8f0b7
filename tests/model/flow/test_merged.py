"""A merged expert is the same function as base and expert, to rounding."""

import torch
from tiny_model import tiny_base, tiny_config, tiny_expert

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.flow.merged import MergedExpert

CONFIG = tiny_config(coupling_blocks=3, dia_blocks=3)


def embeddings(*sides: int) -> torch.Tensor:
    return torch.randn(2, *sides, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def unmerged(base: Base, expert: Expert, x: torch.Tensor) -> torch.Tensor:
    return negative_log_likelihood(*flow_forward(base, expert, x))


def test_merged_equals_unmerged_to_the_last_digits_of_float64() -> None:
    base, expert = tiny_base(CONFIG).double(), tiny_expert(CONFIG).double()
    x = embeddings(4, 4).double()
    difference = MergedExpert(base, expert, torch.float64)(x) - unmerged(base, expert, x)
    assert difference.abs().max() < 1e-10


def test_merged_equals_unmerged_within_a_hundred_thousandth_in_float32() -> None:
    base, expert = tiny_base(CONFIG), tiny_expert(CONFIG)
    x = embeddings(4, 4)
    expected = unmerged(base, expert, x)
    assert torch.allclose(MergedExpert(base, expert)(x), expected, rtol=1e-5, atol=1e-4)


def test_one_expert_takes_grids_of_any_shape() -> None:
    base, expert = tiny_base(CONFIG), tiny_expert(CONFIG)
    merged = MergedExpert(base, expert)
    for sides in ((4, 4), (2, 7), (1, 1)):
        x = embeddings(*sides)
        assert torch.allclose(merged(x), unmerged(base, expert, x), rtol=1e-5, atol=1e-4)


def test_it_is_a_copy_that_later_training_does_not_change() -> None:
    base, expert = tiny_base(CONFIG), tiny_expert(CONFIG)
    merged, x = MergedExpert(base, expert), embeddings(4, 4)
    before = merged(x)
    with torch.no_grad():
        for parameter in (*base.parameters(), *expert.parameters()):
            parameter.add_(1)
    assert torch.equal(merged(x), before)


def test_merging_changes_neither_base_nor_expert() -> None:
    base, expert = tiny_base(CONFIG), tiny_expert(CONFIG)
    MergedExpert(base, expert, torch.bfloat16)
    fresh = (*tiny_base(CONFIG).state_dict().values(), *tiny_expert(CONFIG).state_dict().values())
    now = (*base.state_dict().values(), *expert.state_dict().values())
    assert all(torch.equal(one, other) for one, other in zip(now, fresh, strict=True))


def test_nothing_in_it_learns() -> None:
    merged = MergedExpert(tiny_base(CONFIG), tiny_expert(CONFIG))
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert not merged(embeddings(4, 4)).requires_grad


def test_bf16_products_stay_near_and_the_likelihood_stays_float32() -> None:
    base, expert = tiny_base(CONFIG), tiny_expert(CONFIG)
    x = embeddings(4, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = MergedExpert(base, expert, torch.bfloat16)(x)
    assert found.dtype == torch.float32
    expected = unmerged(base, expert, x)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()
