"""Placement on CUDA without a GPU: fake tensors raise on every mix of devices and on every hidden wait for the device.

``FakeTensorMode`` computes shapes, types and devices and no values. Reading a value, which on a GPU waits for it,
raises. Three limits of PyTorch are worked around, each where it is: conversion of modules, recording of gradients, and
the autograd engine, which need a CUDA driver for tensors on ``cuda``.
"""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, cast

import pytest
import torch
from forked import Processes
from packaging.version import Version
from tiny_model import tiny_config
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from moleflow.model.detector import Detector
from moleflow.model.features.backbone import Backbone
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.memory.scorer import ProductParts, ProductScorer
from moleflow.model.routing.router import Prototype
from moleflow.model.store.checkpoint import Checkpoint, Profile
from moleflow.model.store.experts import MergedExperts
from moleflow.model.verdict.calibration import Calibration, TaskCalibration
from moleflow.training.config import TrainingConfig
from moleflow.training.fit.backward.network import FusedFlow
from moleflow.training.fit.trainer import TaskTrainer

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"),
    reason="older releases of PyTorch ask for a driver for fake tensors too",
)

CUDA = torch.device("cuda")
DIM = 16
CALIBRATION = TaskCalibration(*[Calibration.fit([1.0, 2.0, 3.0])] * 4)


def converted(module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply`` for fake parameters, which it cannot swap in place."""
    for child in module.children():
        converted(child, convert)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                cast(Any, parameter).constant = None  # a constant would be moved for real
                module._parameters[name] = nn.Parameter(convert(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(buffer)
    return module


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every tensor made inside is fake; a real one that gets in is an error."""
    monkeypatch.setattr(nn.Module, "_apply", converted)
    monkeypatch.setattr("moleflow.model.detector.resolve_device", lambda device: torch.device(device))
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield


class Unread:
    """A checkpoint with the real header whose modules are created directly, as fake tensors cannot be read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.header = checkpoint.header

    def backbone(self) -> Backbone:
        return Backbone.empty(self.header.config.backbone, self.header.preprocessing)

    def base(self) -> Base:
        return Base(self.header.config).requires_grad_(False)

    def profile(self, index: int) -> Profile:
        return Profile(Prototype(DIM, 4, 4), CALIBRATION)

    def product(self, index: int) -> ProductParts:
        return ProductParts(Expert(self.header.config, first=index == 0).requires_grad_(False))


@pytest.fixture
def on_cuda(checkpoint: Checkpoint, fake: None) -> Detector:
    return Detector(Unread(checkpoint), device="cuda", precision="fp32")  # type: ignore[arg-type]


def images(device: torch.device) -> torch.Tensor:
    return torch.zeros(3, 32, 32, 3, dtype=torch.uint8, device=device)


@torch.no_grad()
def test_prediction_stays_on_cuda_and_waits_for_nothing(on_cuda: Detector) -> None:
    features, distances, shares = on_cuda.embed_and_route(images(CUDA))
    assert features.embeddings.device.type == distances.device.type == shares.device.type == "cuda"
    assert features.embeddings.shape == (3, 4, 4, DIM)
    assert distances.shape == shares.shape == (3, 3)
    for tasks in ([0, 0, 0], [2, 0, 1], [1, 1, 2]):
        maps = on_cuda.products.maps(features, tasks)
        assert maps.nll.device.type == maps.anomaly.device.type == "cuda"
        assert maps.nll.shape == maps.anomaly.shape == (3, 4, 4)


@torch.no_grad()
def test_images_left_on_the_cpu_are_found(on_cuda: Detector) -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        on_cuda.embed_and_route(images(torch.device("cpu")))


@torch.no_grad()
@pytest.mark.parametrize("part", ["products._router", "_computes.features"])
def test_a_part_left_on_the_cpu_is_found(on_cuda: Detector, part: str) -> None:
    attrgetter(part)(on_cuda).cpu()
    with pytest.raises(RuntimeError, match="two devices"):
        on_cuda.embed_and_route(images(CUDA))


@torch.no_grad()
def test_an_expert_left_on_the_cpu_is_found(on_cuda: Detector) -> None:
    features, _, _ = on_cuda.embed_and_route(images(CUDA))
    assert isinstance(on_cuda.products.experts, MergedExperts)
    expert = on_cuda.products.experts.get(1)
    assert isinstance(expert, ProductScorer)
    expert.cpu()
    with pytest.raises(RuntimeError, match="two devices"):
        on_cuda.products.maps(features, [1, 1, 1])


@torch.no_grad()
def test_a_hidden_wait_for_the_device_is_found(on_cuda: Detector) -> None:
    _, distances, _ = on_cuda.embed_and_route(images(CUDA))
    with pytest.raises(DataDependentOutputException):
        distances.argmin(1).tolist()


def make_trainer(*, first: bool, device: torch.device) -> TaskTrainer:
    config = tiny_config()
    base = Base(config).to(device).requires_grad_(first)
    return TaskTrainer("nut", config, TrainingConfig(), base, first=first, device=device, precision="fp32")


@pytest.mark.parametrize("first", [True, False])
def test_a_training_step_on_cuda_mixes_no_devices_and_waits_for_nothing(
    fake: None, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    trainer = make_trainer(first=first, device=CUDA)

    # The engine is PyTorch's own; the next test runs it, on a device that needs no driver.
    def fill_gradients(flow: FusedFlow, gradients: list[torch.Tensor]) -> None:
        assert all(gradient.device.type == "cuda" for gradient in gradients)
        for parameter in trainer.parameters:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(FusedFlow, "gradients", lambda flow, loss: [torch.zeros_like(leaf) for leaf in flow._leaves])
    monkeypatch.setattr(FusedFlow, "finish", fill_gradients)
    with torch.no_grad():
        for _ in range(2):
            loss, nll = trainer.step(torch.zeros(2, 4, 4, DIM, device=CUDA), 1e-3)
        with pytest.raises(RuntimeError, match="two devices"):
            trainer.step(torch.zeros(2, 4, 4, DIM), 1e-3)
    assert loss.device.type == nll.device.type == "cuda"
    assert all(parameter.device.type == "cuda" for parameter in trainer.parameters)


ON_A_PRETEND_DEVICE = """
import sys
sys.path[:0] = {paths!r}
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
_setup_privateuseone_for_python_backend("pretend")
from test_cuda_placement import DIM, converted, make_trainer
nn.Module._apply = converted
device = torch.device("pretend")
with FakeTensorMode(allow_non_fake_inputs=False):
    for first in (True, False):
        trainer = make_trainer(first=first, device=device)
        for _ in range(2):
            loss, nll = trainer.step(torch.zeros(2, 4, 4, DIM, device=device), 1e-3)
        assert {{parameter.grad.device.type for parameter in trainer.parameters}} == {{"pretend"}}
        assert loss.device.type == "pretend"
        print("step", first)
        try:
            loss.item()
        except Exception as error:
            print(type(error).__name__)
        trainer.expert.adapter.cpu()
        try:
            trainer.step(torch.zeros(2, 4, 4, DIM, device=device), 1e-3)
        except Exception as error:
            print(type(error).__name__)
"""


def test_forward_backward_and_optimizer_stay_on_an_accelerator(processes: Processes) -> None:
    # In a separate process, since a registered device cannot be removed.
    from forked import ROOT

    paths = [str(ROOT / "tests" / "model"), str(ROOT / "tests" / "support")]
    finished = processes.run(ON_A_PRETEND_DEVICE.format(paths=paths))
    assert finished.status == 0, finished.stderr
    assert finished.stdout.split("\n")[:-1] == [
        *("step True", "DataDependentOutputException", "FakeTensorDeviceMismatchError"),
        *("step False", "DataDependentOutputException", "FakeTensorDeviceMismatchError"),
    ]
