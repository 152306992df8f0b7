"""A training step on a GPU is that of a CPU: loss, gradients and weights."""

import itertools
from typing import NamedTuple

import pytest
import torch
from agreement import relative_error, using_every_processor
from tiny_model import tiny_config
from wide_model import WIDE_MAIN, perturbed

from moleflow.model.config import ModelConfig
from moleflow.model.flow.context import depthwise
from moleflow.model.flow.expert import Base
from moleflow.training.config import TrainingConfig
from moleflow.training.fit.trainer import TaskTrainer

CPU = torch.device("cpu")
UNCLIPPED = TrainingConfig(max_gradient_norm=1e9, tail_fraction=0.1)
CLIPPED = TrainingConfig()
RATE = 1e-3

NETWORKS = {"tiny": (tiny_config(), 6, 4), "zca": (tiny_config(adapter="zca"), 6, 4), "wide": (WIDE_MAIN, 2, 28)}
"""Configuration, images of a batch, and side of their grid."""

EVERY_NETWORK = pytest.mark.parametrize("network", NETWORKS)
EVERY_TASK = pytest.mark.parametrize("first", [True, False], ids=["first", "later"])


def skip_what_takes_a_cpu_minutes(network: str, precision: str, device: torch.device) -> None:
    if network == "wide" and precision == "bf16" and device.type == "cpu":
        pytest.skip("this takes a CPU minutes")


def make_trainer(
    config: ModelConfig, device: torch.device, precision: str, *, first: bool, training: TrainingConfig = UNCLIPPED
) -> TaskTrainer:
    """A trainer in the middle of training: no weight is as it began."""
    base = perturbed(Base(config, seed=1), 1)
    trainer = TaskTrainer("nut", config, training, base, first=first, device=device, precision=precision)
    perturbed(trainer.expert, 2)
    return trainer


def batch_of(network: str, seed: int = 0) -> torch.Tensor:
    config, count, side = NETWORKS[network]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, side, side, config.backbone.embedding_dim, generator=generator)


def names_of(trainer: TaskTrainer) -> dict[torch.Tensor, str]:
    modules = {"base": trainer.base, "expert": trainer.expert}
    return {value: f"{part}.{name}" for part, module in modules.items() for name, value in module.named_parameters()}


def gradients(trainer: TaskTrainer) -> dict[str, torch.Tensor]:
    """The gradients of the first step by name, as the optimizer saw them: its mean is a tenth of them then."""
    names, state = names_of(trainer), trainer.optimizer.state
    return {names[value]: state[value]["exp_avg"].cpu() * 10 for value in trainer.parameters}


def weights(trainer: TaskTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for value, name in names_of(trainer).items()}


def first_step(
    network: str, device: torch.device, precision: str, *, first: bool
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    trainer = make_trainer(NETWORKS[network][0], device, precision, first=first)
    loss, nll = trainer.step(batch_of(network).to(device), RATE)
    return loss.cpu(), nll.cpu(), gradients(trainer)


def whole(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in values.values()])


@pytest.fixture(scope="module")
def on_cpu() -> dict[tuple[str, bool], tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
    """The first step of each network and task on the CPU."""
    with using_every_processor():
        return {(n, f): first_step(n, CPU, "fp32", first=f) for n in NETWORKS for f in (True, False)}


@pytest.fixture(scope="module")
def losses_on_cpu() -> dict[tuple[str, bool], list[float]]:
    """The losses of several steps of each network and task on the CPU."""
    found = {}
    with using_every_processor():
        for network, first in itertools.product(NETWORKS, (True, False)):
            found[network, first] = losses(make_trainer(NETWORKS[network][0], CPU, "fp32", first=first), network)
    return found


class Bounds(NamedTuple):
    """Of ‖found − expected‖ / ‖expected‖: of all gradients together, and of each parameter's."""

    together: float
    each: float


EXACT, ROUNDED = Bounds(1e-3, 5e-3), Bounds(5e-3, 2e-1)
"""In fp32, where cuDNN's depthwise convolutions do not round what they read to TF32, and where they do. The gradient of
a context's gain is a small sum of large values, which multiplies what they are off by."""


@pytest.fixture(scope="module")
def bounds(device: torch.device) -> Bounds:
    """As the convolutions of the device allow."""
    generator = torch.Generator().manual_seed(0)
    x, kernel = torch.randn(2, 28, 28, 384, generator=generator), torch.randn(384, 1, 5, 5, generator=generator)
    error = relative_error(depthwise(x.to(device), kernel.to(device)), depthwise(x.double(), kernel.double()))
    print(f"error of a depthwise convolution: {error:.1e}")
    return EXACT if error < 1e-5 else ROUNDED


@EVERY_TASK
@EVERY_NETWORK
def test_loss_and_gradients_in_fp32_agree(
    network: str, first: bool, device: torch.device, on_cpu: dict, bounds: Bounds
) -> None:
    loss, nll, found = first_step(network, device, "fp32", first=first)
    expected_loss, expected_nll, expected = on_cpu[network, first]
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-3)
    assert nll.item() == pytest.approx(expected_nll.item(), rel=1e-3)
    assert any(name.startswith("base.") for name in expected) == first
    assert found.keys() == expected.keys()
    together = relative_error(whole(found), whole(expected))
    errors = {name: relative_error(value, expected[name]) for name, value in found.items() if expected[name].any()}
    worst = max(errors, key=errors.__getitem__)
    print(f"error of all gradients: {together:.1e}; the largest of one: {errors[worst]:.1e} of {worst}")
    assert together < bounds.together
    assert {name: error for name, error in errors.items() if error >= bounds.each} == {}


@EVERY_TASK
@EVERY_NETWORK
def test_loss_and_gradients_in_bf16_are_near(network: str, first: bool, device: torch.device, on_cpu: dict) -> None:
    skip_what_takes_a_cpu_minutes(network, "bf16", device)
    loss, nll, found = first_step(network, device, "bf16", first=first)
    expected_loss, expected_nll, expected = on_cpu[network, first]
    assert loss.item() == pytest.approx(expected_loss.item(), rel=3e-2)
    assert nll.item() == pytest.approx(expected_nll.item(), rel=3e-2)
    error = relative_error(whole(found), whole(expected))
    print(f"error of the gradient: {error:.1e}")
    assert error < 3e-2


@pytest.mark.parametrize("network", ["tiny", "zca"])
def test_the_gradient_is_clipped_like_a_cpus(network: str, device: torch.device, bounds: Bounds) -> None:
    config = NETWORKS[network][0]
    found, expected = (make_trainer(config, each, "fp32", first=True, training=CLIPPED) for each in (device, CPU))
    for trainer in (found, expected):
        trainer.step(batch_of(network).to(trainer.device), RATE)
    assert whole(gradients(found)).norm().item() == pytest.approx(CLIPPED.max_gradient_norm, rel=1e-3)
    assert relative_error(whole(gradients(found)), whole(gradients(expected))) < bounds.together


def losses(trainer: TaskTrainer, network: str) -> list[float]:
    """Losses of several steps, each at a rate of its own."""
    batch = batch_of(network).to(trainer.device)
    steps = 3 if network == "wide" else 8
    return [trainer.step(batch, RATE / (1 + step))[0].item() for step in range(steps)]


@EVERY_TASK
@EVERY_NETWORK
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_several_steps_have_the_losses_of_a_cpu(
    network: str, first: bool, precision: str, bound: float, device: torch.device, losses_on_cpu: dict
) -> None:
    skip_what_takes_a_cpu_minutes(network, precision, device)
    found = losses(make_trainer(NETWORKS[network][0], device, precision, first=first), network)
    expected = losses_on_cpu[network, first]
    assert found == pytest.approx(expected, rel=bound)
    assert expected[-1] < (1 - 3e-3) * expected[0]  # so that one that learns nothing is outside the bound
    assert found[-1] < found[0]


@EVERY_TASK
@EVERY_NETWORK
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_twice_gives_the_same_bits(
    network: str, first: bool, precision: str, device: torch.device
) -> None:
    skip_what_takes_a_cpu_minutes(network, precision, device)
    one, other = (make_trainer(NETWORKS[network][0], device, precision, first=first) for _ in range(2))
    assert losses(one, network) == losses(other, network)
    again = weights(other)
    assert [name for name, value in weights(one).items() if not torch.equal(value, again[name])] == []


@EVERY_TASK
def test_trainers_that_take_turns_do_not_affect_each_other(first: bool, device: torch.device) -> None:
    config = NETWORKS["tiny"][0]
    batches = [batch_of("tiny", seed).to(device) for seed in (0, 1)]
    alone, one, other = (make_trainer(config, device, "fp32", first=first) for _ in range(3))
    expected = [alone.step(batches[0], RATE)[0].item() for _ in range(5)]
    found = []
    for _ in range(5):
        loss, _ = one.step(batches[0], RATE)
        other.step(batches[1], RATE)
        found.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_last_batch_of_another_size_is_learned_too(device: torch.device) -> None:
    config = NETWORKS["tiny"][0]
    found, expected = (make_trainer(config, each, "fp32", first=True) for each in (device, CPU))
    for size in (6, 6, 2, 6, 2):
        one, other = (
            trainer.step(batch_of("tiny")[:size].to(trainer.device), RATE)[0] for trainer in (found, expected)
        )
        assert one.item() == pytest.approx(other.item(), rel=1e-3)


def test_the_loss_of_one_step_survives_the_next(device: torch.device) -> None:
    trainer, batch = make_trainer(NETWORKS["tiny"][0], device, "fp32", first=True), batch_of("tiny").to(device)
    kept = [trainer.step(batch, RATE / (1 + step)) for step in range(8)]
    read_at_once = losses(make_trainer(NETWORKS["tiny"][0], device, "fp32", first=True), "tiny")
    assert [loss.item() for loss, _ in kept] == pytest.approx(read_at_once, rel=1e-5)
    assert len({nll.item() for _, nll in kept}) == len({*read_at_once}) == 8
