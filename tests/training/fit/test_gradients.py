"""The gradients of a step's batch, taken a few images at a time on several threads, are those of the whole loss."""

from collections.abc import Iterator

import pytest
import torch
from tiny_model import tiny_base, tiny_config, tiny_expert

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.training.config import TrainingConfig
from moleflow.training.fit import gradients
from moleflow.training.fit.gradients import add_gradients, at_once
from moleflow.training.fit.loss import tail_aware_loss

TRAINING = TrainingConfig(tail_fraction=0.2)

Gradients = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def parts(*, first: bool) -> tuple[Base, Expert]:
    config = tiny_config()
    return tiny_base(config).requires_grad_(first), tiny_expert(config, first=first)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 5, 16, generator=torch.Generator().manual_seed(4))


def taken(base: Base, expert: Expert) -> Gradients:
    """The gradients of those parameters that have one."""
    named = {f"base.{name}": p for name, p in base.named_parameters()}
    named |= {f"expert.{name}": p for name, p in expert.named_parameters()}
    return {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}


def added(threads: int, count: int = 5, *, first: bool = True) -> tuple[list[torch.Tensor], Gradients]:
    torch.set_num_threads(threads)
    base, expert = parts(first=first)
    values = add_gradients(base, expert, images(count), TRAINING, "fp32")
    assert torch.get_num_threads() == threads
    return list(values), taken(base, expert)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_loss_and_gradients_are_those_of_the_whole_batch_in_the_models_flow(
    threads: int, count: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "AT_ONCE_BYTES", 2 * 4 * images(1).numel())
    base, expert = parts(first=first)
    z, log_det = flow_forward(base, expert, images(count))
    nll = negative_log_likelihood(z, log_det)
    loss = tail_aware_loss(nll, log_det, TRAINING)
    loss.backward()
    (found_loss, found_nll), found = added(threads, count, first=first)
    assert torch.allclose(found_loss, loss, rtol=1e-5)
    assert torch.allclose(found_nll, nll.mean(), rtol=1e-5)
    expected = taken(base, expert)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item()), name


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_number_of_threads_gives_the_same_bits(threads: int) -> None:
    (one, first), (other, second) = added(threads), added(threads)
    assert torch.equal(torch.stack(one), torch.stack(other))
    assert first.keys() == second.keys()
    assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


def test_gradients_are_added_to_those_that_are_there() -> None:
    torch.set_num_threads(2)
    base, expert = parts(first=True)
    _, once = added(2)
    for _ in range(2):
        add_gradients(base, expert, images(5), TRAINING, "fp32")
    twice = taken(base, expert)
    assert len(twice) == len([*base.parameters(), *expert.parameters()])
    for name, gradient in twice.items():
        assert torch.equal(gradient, 2 * once[name]), name


def test_what_fails_on_a_thread_is_raised() -> None:
    torch.set_num_threads(2)
    base, expert = parts(first=True)
    with pytest.raises(RuntimeError):
        add_gradients(base, expert, torch.zeros(4, 4, 5, 8), TRAINING, "fp32")


def test_a_cpu_takes_few_images_at_once_and_another_device_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(7)
    monkeypatch.setattr(gradients, "AT_ONCE_BYTES", 3 * 4 * x[0].numel())
    assert at_once(x) == 3
    monkeypatch.setattr(gradients, "AT_ONCE_BYTES", 1)
    assert at_once(x) == 1
    assert at_once(torch.empty(7, 4, 5, 16, device="meta")) == 7


def test_patches_that_do_not_count_add_no_gradient() -> None:
    patches = torch.tensor([0, 7, 8, 19])
    base, expert = parts(first=True)
    z, log_det = flow_forward(base, expert, images(3))
    tail_aware_loss(negative_log_likelihood(z, log_det), log_det, TRAINING, patches).backward()
    expected = taken(base, expert)
    base, expert = parts(first=True)
    add_gradients(base, expert, images(3), TRAINING, "fp32", patches)
    found = taken(base, expert)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())), name
