"""Every variant of the network is a flow, differs from the full one as its name says, and learns what it should."""

import pytest
import torch
from tiny_model import tiny_base, tiny_config, tiny_expert
from variants import VARIANTS

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.config import FlowConfig, ModelConfig
from moleflow.model.features.embedding import with_position
from moleflow.model.flow.adapters import SoftLN, WhiteningAdapter
from moleflow.model.flow.blocks import MoLEDelta
from moleflow.model.flow.expert import Base, Expert, flow_input
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.flow.lora import LoRADelta
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.flow.plain import PlainFlow
from moleflow.model.flow.subnet import DenseSubnet

every_variant = pytest.mark.parametrize(
    "changes", [pytest.param(changes, id=name) for name, changes in VARIANTS.items()]
)
DIM = 8


def parts(changes: dict, *, first: bool = False, dim: int = 16) -> tuple[Base, Expert]:
    """Base and expert of a variant, every parameter different from its start."""
    config = tiny_config(dim=dim, **changes)
    return tiny_base(config), tiny_expert(config, first=first)


def embeddings(dim: int = 16) -> torch.Tensor:
    return torch.randn(2, 4, 3, dim, generator=torch.Generator().manual_seed(0))


def likelihood(base: Base, expert: Expert, x: torch.Tensor) -> torch.Tensor:
    return negative_log_likelihood(*flow_forward(base, expert, x))


def bare_flow(changes: dict) -> tuple[Base, Expert, torch.Tensor]:
    """A variant's flow in float64 whose input nothing prepares, and something to put in."""
    base, expert = parts(changes, dim=DIM)
    base.mixer, expert.adapter = None, torch.nn.Identity()  # type: ignore[assignment]
    return base.double(), expert.double(), embeddings(DIM).double()


@every_variant
def test_the_log_determinant_is_that_of_autograds_jacobian(changes: dict) -> None:
    base, expert, x = bare_flow(changes)
    _, log_det = flow_forward(base, expert, x[:1])
    jacobian = torch.autograd.functional.jacobian(lambda v: flow_forward(base, expert, v)[0], x[:1])
    square = jacobian.reshape(x[:1].numel(), x[:1].numel())
    assert log_det.abs().max() > 0.01
    assert log_det.sum().item() == pytest.approx(torch.linalg.slogdet(square).logabsdet.item(), abs=1e-9)


@every_variant
@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_merged_equals_unmerged_in_float64(changes: dict, first: bool) -> None:
    base, expert = parts(changes, first=first)
    base.double(), expert.double()
    x = embeddings().double()
    difference = MergedExpert(base, expert, torch.float64)(x) - likelihood(base, expert, x)
    assert difference.abs().max() < 1e-10


@every_variant
@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_merged_equals_unmerged_in_float32(changes: dict, first: bool) -> None:
    base, expert = parts(changes, first=first)
    x = embeddings()
    expected = likelihood(base, expert, x)
    assert torch.allclose(MergedExpert(base, expert)(x), expected, rtol=1e-5, atol=1e-4)


@every_variant
@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_without_changes_in_place_it_is_the_same(changes: dict, first: bool) -> None:
    base, expert = parts(changes, first=first)
    x, merged = embeddings(), MergedExpert(base, expert)
    assert torch.allclose(PlainFlow(merged, x.shape[-1])(x), merged(x), rtol=1e-5, atol=1e-4)


@every_variant
def test_merged_products_in_bf16_stay_near_and_the_likelihood_stays_float32(changes: dict) -> None:
    base, expert = parts(changes)
    x = embeddings()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = MergedExpert(base, expert, torch.bfloat16)(x)
    expected = likelihood(base, expert, x).detach()
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


@every_variant
@torch.no_grad()
def test_a_merged_expert_is_a_copy_that_later_training_does_not_change(changes: dict) -> None:
    base, expert = parts(changes)
    merged, x = MergedExpert(base, expert), embeddings()
    before = merged(x)
    for parameter in (*base.parameters(), *expert.parameters()):
        parameter.add_(1)
    assert torch.equal(merged(x), before)


@every_variant
@pytest.mark.parametrize("first", [True, False])
def test_a_saved_variant_computes_the_same_bits_when_loaded(changes: dict, first: bool) -> None:
    base, expert = parts(changes, first=first)
    config = tiny_config(**changes)
    loaded_base, loaded_expert = Base(config, seed=9), Expert(config, first=first, seed=9)
    loaded_base.load_state_dict(base.state_dict())
    loaded_expert.load_state_dict(expert.state_dict())
    x = embeddings()
    assert torch.equal(likelihood(loaded_base, loaded_expert, x), likelihood(base, expert, x))


def silent(**modules: torch.nn.Module) -> set[str]:
    """Names of the parameters that got no gradient, or one that is zero everywhere."""
    return {
        f"{name}.{key}"
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }


@every_variant
def test_after_one_step_of_the_first_task_the_gradient_reaches_everything_it_has(changes: dict) -> None:
    config = tiny_config(**changes)
    base, expert = Base(config), Expert(config, first=True)
    optimizer = torch.optim.SGD([*base.parameters(), *expert.parameters()], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        likelihood(base, expert, embeddings()).mean().backward()
        optimizer.step()
    assert silent(base=base, expert=expert) == set()


@every_variant
def test_with_a_frozen_base_the_gradient_reaches_a_later_expert_and_nothing_else(changes: dict) -> None:
    base, expert = parts(changes)
    likelihood(base.requires_grad_(False), expert, embeddings()).mean().backward()
    assert silent(expert=expert) == set()
    assert all(parameter.grad is None for parameter in base.parameters())


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_without_mixer_neighbours_do_not_enter_the_flows_input() -> None:
    for changes, mixes in (({}, True), ({"spatial_context_kernel": None}, False)):
        base, expert = parts(changes)
        x = embeddings()
        moved = x.clone()
        moved[:, 0, 0] += torch.linspace(-1, 1, 16)
        difference = (flow_input(base, expert, moved) - flow_input(base, expert, x)).abs()
        assert difference[:, 0, 0].max() > 0.01
        assert bool(difference[:, 1, 1].any()) == mixes
    assert not any("mixer" in key for key in base.state_dict())


def test_without_scale_context_no_patch_sees_its_neighbours_inside_the_flow() -> None:
    for changes, sees in (({}, True), ({"scale_context_kernel": None}, False)):
        base, expert, x = bare_flow(changes)
        moved = x.clone()
        moved[:, 0, 0] += 1
        (z, log_det), (other_z, other_log_det) = flow_forward(base, expert, x), flow_forward(base, expert, moved)
        assert (z - other_z)[:, 0, 0].abs().max() > 0.1
        assert bool((z - other_z)[:, 1, 1].any()) == sees
        assert bool((log_det - other_log_det)[:, 1, 1].any()) == sees
    assert not any("context" in key for key in base.state_dict())


def test_without_scale_context_the_scale_branch_is_as_wide_as_the_shift_branch() -> None:
    base, expert = parts({"scale_context_kernel": None})
    for block, delta in zip(base.blocks, expert.deltas, strict=True):
        assert block.scale_in.weight.shape == block.shift_in.weight.shape == (16, 8)
        assert isinstance(delta, MoLEDelta)
        assert delta.scale_in.A.shape == delta.shift_in.A.shape == (2, 8)


def test_the_soft_ln_variant_has_no_whitening_adapter() -> None:
    (_, whitened), (_, soft) = parts({}), parts({"adapter": "soft_ln"})
    assert isinstance(whitened.adapter, WhiteningAdapter)
    assert isinstance(soft.adapter, SoftLN)
    position = with_position(torch.zeros_like(embeddings()))
    scaled = (embeddings(), 3 * embeddings() + 2 * position)
    # LayerNorm takes the scale of its input away; what SoftLN lets through has it.
    one, other = (whitened.adapter(x) for x in scaled)
    assert torch.allclose(one, other, atol=1e-4)
    one, other = (soft.adapter(x) for x in scaled)
    assert not torch.allclose(one, other, atol=0.1)


def test_the_linear_variant_has_no_low_rank_changes_and_shares_no_linear_layer() -> None:
    base, expert = parts({"subnet": "linear"})
    assert not any(isinstance(module, LoRADelta) for module in expert.modules())
    assert not any(isinstance(module, torch.nn.Linear) for module in base.modules())
    full_base, full_expert = parts({})
    assert all(isinstance(subnet, DenseSubnet) for subnet in expert.deltas)
    shapes = [tuple(value.shape) for key, value in full_base.blocks[0].state_dict().items() if key.endswith("weight")]
    assert sorted(shapes) == sorted(
        tuple(value.shape) for key, value in expert.deltas[0].state_dict().items() if key.endswith("weight")
    )
    assert count(expert) > count(full_expert)


def test_two_linear_experts_start_with_layers_of_their_own() -> None:
    config = tiny_config(subnet="linear")
    base = tiny_base(config)
    one, other = (Expert(config, first=False, seed=seed) for seed in (1, 2))
    x = embeddings()
    assert not torch.allclose(likelihood(base, one, x), likelihood(base, other, x))


@pytest.mark.parametrize(("mole", "dia"), [(8, 4), (10, 2), (6, 6), (4, 8), (0, 12), (3, 0)])
def test_a_block_mix_has_as_many_blocks_of_each_kind_as_it_says(mole: int, dia: int) -> None:
    base, expert = parts({"coupling_blocks": mole, "dia_blocks": dia})
    assert (len(base.blocks), len(expert.deltas), len(expert.dia)) == (mole, mole, dia)


def test_dia_alone_keeps_patches_apart_and_needs_nothing_of_the_base() -> None:
    base, expert, x = bare_flow({"coupling_blocks": 0, "dia_blocks": 12})
    assert count(base) == 0
    moved = x.clone()
    moved[:, 0, 0] += 1
    difference = (flow_forward(base, expert, moved)[0] - flow_forward(base, expert, x)[0]).abs().sum(-1)
    assert difference[:, 0, 0].all()
    assert not difference[:, 0, 1:].any()
    assert not difference[:, 1:].any()


def test_a_flow_of_no_block_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="coupling_blocks and dia_blocks are both 0"):
        FlowConfig(coupling_blocks=0, dia_blocks=0)


@pytest.mark.parametrize("key", ["spatial_context_kernel", "scale_context_kernel"])
@pytest.mark.parametrize("side", [0, 1, 4])
def test_a_kernel_is_odd_and_more_than_one_patch_or_none(key: str, side: int) -> None:
    assert getattr(FlowConfig.model_validate({key: None}), key) is None
    with pytest.raises(ValueError, match=key):
        FlowConfig.model_validate({key: side})


@every_variant
def test_a_variants_configuration_survives_being_written_down(changes: dict) -> None:
    config = tiny_config(**changes)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_what_was_written_before_there_were_variants_means_the_full_network() -> None:
    written = ModelConfig().model_dump()
    for key in ("adapter", "subnet", "sharing"):
        del written["flow"][key]
    assert ModelConfig.model_validate(written) == ModelConfig()


def test_the_variants_do_not_change_what_the_full_network_starts_as() -> None:
    # Values drawn from a seed: were the order of drawing to change, a seed would give another checkpoint than before.
    base, expert = Base(tiny_config(), seed=3), Expert(tiny_config(), first=True, seed=4)
    assert base.blocks[1].permutation.tolist() == [5, 1, 14, 3, 12, 7, 15, 13, 2, 11, 4, 0, 8, 10, 9, 6]
    assert base.blocks[1].scale_in.weight[0, 0].item() == pytest.approx(0.07075953)
    delta = expert.deltas[1]
    assert isinstance(delta, MoLEDelta)
    assert delta.scale_in.A[0, 0].item() == pytest.approx(-0.08690302)
