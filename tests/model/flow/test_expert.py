"""Base and experts together: what learns when, what a new expert starts as, and what a seed decides."""

from collections.abc import Callable

import pytest
import torch
from tiny_model import tiny_base, tiny_config, tiny_expert

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.config import BackboneConfig, ModelConfig
from moleflow.model.features.embedding import position_code, with_position
from moleflow.model.flow.expert import Base, Expert, module_list
from moleflow.model.flow.likelihood import negative_log_likelihood

CONFIG = tiny_config()


def embeddings(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(seed))


def learn(base: Base, expert: Expert) -> torch.Tensor:
    """What a training step goes down on, in the type of the base."""
    x = embeddings().to(base.mixer.kernel.dtype)
    z, log_det = flow_forward(base, expert, x)
    return negative_log_likelihood(z, log_det).mean()


def without_gradient(*modules: tuple[str, torch.nn.Module]) -> set[str]:
    """Names of parameters that got no gradient, or one that is zero everywhere."""
    return {
        f"{name}.{key}"
        for name, module in modules
        for key, parameter in module.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }


def test_the_first_task_starts_with_zero_gradients_only_behind_what_starts_at_zero() -> None:
    base, expert = Base(CONFIG), Expert(CONFIG, first=True)
    learn(base, expert).backward()
    # Each stands in a product with something that starts at zero: A with B, the context's gain with its kernel, and
    # the first two layers of a DIA network with the last one.
    linear = ("shift_in", "shift_out", "scale_in", "scale_out")
    expected = {f"expert.deltas.{block}.{name}.A" for block in range(2) for name in linear}
    expected |= {f"base.blocks.{block}.context.gain" for block in range(2)}
    expected |= {
        f"expert.dia.{block}.{net}.{layer}.{kind}"
        for block in range(2)
        for net in ("scale_net", "shift_net")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    }
    assert without_gradient(("base", base), ("expert", expert)) == expected


def test_after_one_step_the_gradient_reaches_every_parameter_of_base_and_expert() -> None:
    base, expert = Base(CONFIG), Expert(CONFIG, first=True)
    parameters = [*base.parameters(), *expert.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    learn(base, expert).backward()
    optimizer.step()
    optimizer.zero_grad()
    learn(base, expert).backward()
    assert without_gradient(("base", base), ("expert", expert)) == set()


def test_with_a_frozen_base_the_gradient_reaches_the_expert_and_nothing_else() -> None:
    base, expert, other = tiny_base(CONFIG).requires_grad_(False), tiny_expert(CONFIG), tiny_expert(CONFIG, 3)
    learn(base, expert).backward()
    assert without_gradient(("expert", expert)) == set()
    assert all(parameter.grad is None for module in (base, other) for parameter in module.parameters())


def test_a_frozen_and_a_learning_base_give_the_expert_the_same_gradient() -> None:
    experts = [tiny_expert(CONFIG).double() for _ in range(2)]
    for expert, learning in zip(experts, (True, False), strict=True):
        learn(tiny_base(CONFIG).double().requires_grad_(learning), expert).backward()
    for one, other in zip(*(expert.parameters() for expert in experts), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12)


def test_a_new_expert_starts_at_the_base() -> None:
    base = tiny_base(CONFIG)
    x = embeddings()
    one, other = (Expert(CONFIG, first=False, seed=seed) for seed in (1, 2))
    assert not torch.equal(*(expert.get_parameter("deltas.0.shift_in.A") for expert in (one, other)))
    z, log_det = flow_forward(base, one, x)
    other_z, other_log_det = flow_forward(base, other, x)
    assert torch.equal(z, other_z)
    assert torch.equal(log_det, other_log_det)
    # The base alone: without low-rank changes and without the adapter that follows the shared flow.
    bare = Expert(CONFIG, first=False)
    bare.dia = module_list([])
    bare_z, bare_log_det = flow_forward(base, bare, x)
    assert torch.equal(z, bare_z)
    assert torch.equal(log_det, bare_log_det)


def test_the_main_configuration_has_eight_mole_and_four_alternating_dia_blocks_of_rank_64() -> None:
    config = ModelConfig(backbone=BackboneConfig(embedding_dim=16))
    base, expert = Base(config), Expert(config, first=True)
    assert len(base.blocks) == len(expert.deltas) == 8
    assert [block.flip for block in expert.dia] == [False, True, False, True]
    assert expert.deltas[0].shift_in.A.shape == (64, 8)
    assert base.mixer.kernel.shape == (16, 1, 3, 3)
    assert base.blocks[0].context.kernel.shape == (8, 1, 5, 5)
    assert ModelConfig().backbone.embedding_dim == 768


@pytest.mark.parametrize("make", [lambda seed: Base(CONFIG, seed), lambda seed: Expert(CONFIG, first=True, seed=seed)])
def test_a_seed_decides_the_start_values(make: Callable[[int], torch.nn.Module]) -> None:
    one, same, other = (list(make(seed).state_dict().values()) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_building_leaves_the_callers_random_numbers_as_they_were() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Base(CONFIG, seed=2)
    Expert(CONFIG, first=False, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_the_position_code_is_added_to_every_image() -> None:
    x = embeddings()
    assert torch.equal(with_position(x) - x, (x + position_code(4, 4, 16)) - x)
    assert with_position(x.double()).dtype == torch.float64


def test_a_saved_network_computes_the_same_bits_when_loaded() -> None:
    base, expert = tiny_base(CONFIG, 4), tiny_expert(CONFIG, 5)
    loaded_base, loaded_expert = Base(CONFIG, seed=9), Expert(CONFIG, first=False, seed=9)
    loaded_base.load_state_dict(base.state_dict())
    loaded_expert.load_state_dict(expert.state_dict())
    x = embeddings()
    for one, other in zip(flow_forward(base, expert, x), flow_forward(loaded_base, loaded_expert, x), strict=True):
        assert torch.equal(one, other)
