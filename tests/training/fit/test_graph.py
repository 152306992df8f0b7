"""Recorded training steps: what is done around a recording, and on a GPU that replay is training."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config

from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.training.config import TrainingConfig
from moleflow.training.embeddings.extraction import EmbeddingStore
from moleflow.training.fit import gradients
from moleflow.training.fit.graph import StepGraph
from moleflow.training.fit.trainer import TaskTrainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))


def make_trainer(device: torch.device, *, first: bool = True, precision: str = "fp32") -> TaskTrainer:
    config, training = tiny_config(), TrainingConfig(epochs=3, batch_size=3, learning_rate=3e-3)
    return TaskTrainer("nut", config, training, Base(config, seed=1), first=first, device=device, precision=precision)


def make_store() -> EmbeddingStore:
    return EmbeddingStore(PatchFeatures(torch.randn(7, 4, 4, 16, generator=torch.Generator().manual_seed(3))))


def weights(trainer: TaskTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.parameters]


def state(trainer: TaskTrainer) -> list[torch.Tensor]:
    return [value.clone() for values in trainer.optimizer.state.values() for value in values.values()]


def same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("before", [0, 1])
def test_rehearsals_leave_parameters_and_optimizer_as_they_were(without_driver: None, before: int) -> None:
    trainer, other = make_trainer(CPU), make_trainer(CPU)
    x = torch.randn(3, 4, 4, 16)
    for _ in range(before):
        trainer.step(x, 1e-3)
        other.step(x, 1e-3)
    graph = StepGraph(trainer.parameters, trainer.optimizer, CPU)
    with graph._undone():
        trainer.step(x, 1e-3)
    assert same_bits(weights(trainer), weights(other))
    trainer.step(x, 1e-3)
    other.step(x, 1e-3)
    assert same_bits(weights(trainer) + state(trainer), weights(other) + state(other))


def test_a_step_that_cannot_be_recorded_is_taken_directly(
    without_driver: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StepGraph, "_record", fails)
    trainer, other, x = make_trainer(CPU), make_trainer(CPU), torch.randn(3, 4, 4, 16)
    graph = StepGraph(trainer.parameters, trainer.optimizer, CPU)
    trainer._set_learning_rate(1e-3)
    with caplog.at_level(logging.WARNING):
        found = [graph(trainer._update, x) for _ in range(2)]
    assert found == [other.step(x, 1e-3) for _ in range(2)]
    assert same_bits(weights(trainer), weights(other))
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["Recording a CUDA graph failed"]


@pytest.mark.parametrize("message", ["CUDA out of memory", "an illegal memory access was encountered"])
def test_lack_of_memory_and_a_lost_device_are_raised(
    without_driver: None, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(StepGraph, "_record", fails)
    trainer = make_trainer(CPU)
    with pytest.raises(RuntimeError, match=message):
        StepGraph(trainer.parameters, trainer.optimizer, CPU)(trainer._update, torch.randn(3, 4, 4, 16))


def test_a_state_saved_on_a_gpu_is_continued_on_a_cpu(tmp_path: Path) -> None:
    trainer = make_trainer(CPU)
    trainer.step(torch.randn(3, 4, 4, 16), 1e-3)
    trainer.optimizer.param_groups[0] |= {"lr": torch.tensor(1e-3), "capturable": True, "fused": True}
    trainer.save(tmp_path / "state", "mine")
    again = make_trainer(CPU)
    assert again.restore(tmp_path / "state", "mine")
    group = again.optimizer.param_groups[0]
    assert (type(group["lr"]), group["capturable"], group["fused"]) == (float, False, None)
    again.step(torch.randn(3, 4, 4, 16), 1e-3)


@GPU
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_as_a_cpu_does(kernels: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(make_trainer(CPU).epochs(make_store()))
    if not kernels:
        monkeypatch.setattr(gradients, "runs_kernels", lambda embeddings: False)
    found = list(make_trainer(CUDA, precision=precision).epochs(make_store()))
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3 if precision == "fp32" else 2e-2)


@GPU
@pytest.mark.parametrize("first", [True, False])
def test_replayed_steps_have_the_bits_of_direct_ones(first: bool, caplog: pytest.LogCaptureFixture) -> None:
    replayed, direct = (make_trainer(CUDA, first=first, precision="bf16") for _ in range(2))
    batches = [torch.randn(size, 4, 4, 16, device=CUDA) for size in (3, 3, 1, 3, 1, 3)]
    for number, x in enumerate(batches):
        rate = 1e-3 / (number + 1)
        direct._set_learning_rate(rate)
        one, other = replayed.step(x, rate), direct._update(x)
        assert same_bits(list(one), list(other))
    assert same_bits(weights(replayed) + state(replayed), weights(direct) + state(direct))
    assert not caplog.records


@GPU
def test_a_fit_continued_on_a_gpu_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole, stopped, continued = (make_trainer(CUDA, precision="bf16") for _ in range(3))
    list(whole.epochs(make_store()))
    for _ in stopped.epochs(make_store()):
        stopped.save(tmp_path / "state", "mine")
        break
    assert continued.restore(tmp_path / "state", "mine")
    list(continued.epochs(make_store()))
    assert same_bits(weights(continued), weights(whole))
