"""The fusion: the flow's map is capped, the memory's added where it tells defects and not images."""

import math

import pytest
import torch
from tiny_model import CAPPED, FUSED

from moleflow.model.config import ScoringConfig
from moleflow.model.memory.fusion import Fusion, flatness, flow_norm, gate

DIM = 16


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NLL, DISTANCES = 20 + noise(8, 4, 4), 5 + noise(8, 1, 4, 4, seed=1)
POOLED = torch.cat((DISTANCES, 3 + 2 * noise(8, 1, 4, 4, seed=2)), 1)


def test_the_norm_is_the_root_of_the_squared_norm_of_z_plus_a_constant() -> None:
    z, log_det = noise(3, DIM), noise(3, seed=1)
    nll = 0.5 * z.square().sum(-1) + 0.5 * DIM * math.log(2 * math.pi) - log_det
    expected = (z.square().sum(-1) - 2 * log_det + 8 * DIM).sqrt()
    assert torch.allclose(flow_norm(nll, DIM), expected, rtol=1e-5)


def test_the_norm_of_a_very_likely_patch_stays_real() -> None:
    assert flow_norm(torch.tensor([-1e6, -200.0]), DIM).tolist() == [1.0, 1.0]


def test_good_patches_are_standardised_and_hardly_capped() -> None:
    found = Fusion.fit(CAPPED, DIM, NLL, None)(NLL, None)
    norm = flow_norm(NLL, DIM)
    standard = (norm - norm.mean()) / norm.std(correction=0)
    assert torch.allclose(found, 3 * torch.tanh(standard / 3), atol=1e-4)


def test_no_patch_exceeds_the_cap_and_their_order_is_kept() -> None:
    fusion = Fusion.fit(CAPPED, DIM, NLL, None)
    found = fusion(torch.tensor([[[20.0, 25.0, 40.0, 1e3, 1e9]]]), None).flatten()
    assert found.max() <= 3
    assert (found.diff() >= 0).all()
    assert (found[:4].diff() > 0).all()


def test_the_fused_map_is_the_gated_memory_plus_the_weighted_flow() -> None:
    fusion = Fusion.fit(FUSED, DIM, NLL, DISTANCES)
    flow = Fusion.fit(ScoringConfig(cap=4.0), DIM, NLL, None)(NLL, None)
    memory = (DISTANCES[:, 0] - DISTANCES.mean()) / DISTANCES.std(correction=0)
    expected = fusion.gate * memory + 0.5 * flow
    assert 0 < fusion.gate < 1
    assert torch.allclose(fusion(NLL, DISTANCES), expected, atol=1e-4)


def test_the_gate_is_open_when_images_do_not_differ_and_shut_when_half_of_the_variance_is_between_them() -> None:
    within = noise(6, 10, 10)
    within = within - within.mean((1, 2), keepdim=True)
    between = noise(6, 1, 1, seed=2)
    between = (between - between.mean()) / between.std(correction=0) * within.std(correction=0)
    assert gate(within.double()) == pytest.approx(1)
    assert gate((within + between).double()) == pytest.approx(0, abs=1e-6)
    assert gate((within + 0.5 * between).double()) == pytest.approx(1 - 2 * 0.25 / 1.25)
    assert gate((within + 3 * between).double()) == 0


def test_a_surface_is_flat_where_the_position_explains_nothing_and_an_object_is_not() -> None:
    within = noise(400, 10, 10).double()
    places = noise(1, 10, 10, seed=2).double()
    places = (places - places.mean()) / places.std(correction=0)
    assert flatness(within) == pytest.approx(1, abs=0.02)
    assert flatness(within + 0.5 * places) == pytest.approx(1 - 2 * 0.25 / 1.25, abs=0.02)
    assert flatness(within + 2 * places) == 0


def test_pooled_patches_count_half_of_their_gate_on_a_flat_surface() -> None:
    fusion = Fusion.fit(FUSED, DIM, NLL, POOLED)
    wide = POOLED.double()
    assert fusion.gate[0] == pytest.approx(gate(wide[:, 0]))
    assert fusion.gate[1] == pytest.approx(0.5 * gate(wide[:, 1]) * flatness(wide[:, 0]))
    one = Fusion.fit(FUSED, DIM, NLL, DISTANCES)(NLL, DISTANCES)
    pooled = (POOLED[:, 1] - POOLED[:, 1].mean()) / POOLED[:, 1].std(correction=0)
    assert torch.allclose(fusion(NLL, POOLED), one + fusion.gate[1] * pooled, atol=1e-4)


def test_pooled_patches_without_weight_can_be_left_out() -> None:
    fusion = Fusion.fit(FUSED, DIM, NLL, POOLED)
    fusion.gate[1] = 0
    before = fusion(NLL, POOLED)
    assert torch.equal(fusion.without_pooled()(NLL, DISTANCES), before)


def test_patches_that_are_all_alike_still_fuse_to_finite_numbers() -> None:
    same = torch.full((3, 4, 4), 20.0)
    fusion = Fusion.fit(FUSED, DIM, same, same[:, None])
    assert fusion(NLL[:1], DISTANCES[:1]).isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_likelihood_that_is_not_finite_is_not_hidden_by_the_cap(value: float) -> None:
    fusion = Fusion.fit(CAPPED, DIM, NLL, None)
    assert fusion(torch.tensor([[[value, 20.0]]]), None).isnan().flatten().tolist() == [True, False]


def test_what_is_not_used_is_not_stored() -> None:
    assert set(Fusion(CAPPED, DIM).state_dict()) == {"flow_mean", "flow_deviation"}
    assert set(Fusion(FUSED, DIM).state_dict()) == {
        "flow_mean",
        "flow_deviation",
        "memory_mean",
        "memory_deviation",
        "gate",
    }


def test_a_memory_needs_a_cap() -> None:
    with pytest.raises(ValueError, match="needs a cap"):
        ScoringConfig(memory=FUSED.memory)
