"""Prediction and training give a GPU work without waiting for it: PyTorch raises on every hidden wait."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from agreement import as_batch, moved
from device_cases import Case, Load
from tiny_model import tiny_config
from wide_model import WIDE_MAIN

from moleflow.model.config import ModelConfig
from moleflow.model.flow.expert import Base
from moleflow.training.config import TrainingConfig
from moleflow.training.fit.trainer import TaskTrainer

WARM_UP = 5
"""Calls before waiting is an error: the first ones load experts, compile kernels, or record what is replayed later."""

pytestmark = pytest.mark.usefixtures("restored")


def set_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        torch.cuda.set_sync_debug_mode(mode)


@pytest.fixture
def restored(device: torch.device) -> Iterator[None]:
    """Waiting is allowed again afterwards."""
    yield
    if device.type == "cuda":
        set_mode("default")


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """On CUDA; a CPU has nothing to wait for."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    set_mode("error")
    try:
        yield
    finally:
        set_mode("default")


def test_a_wait_is_found(cuda: torch.device) -> None:
    values = torch.arange(3.0, device=cuda)
    with waiting_is_an_error(cuda), pytest.raises(RuntimeError, match="synchroniz"):
        values.sum().item()
    assert values.sum().item() == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.inference_mode()
def test_embedding_and_routing_wait_for_nothing(case: Case, precision: str, load: Load, device: torch.device) -> None:
    detector, batch = load(case.checkpoint, precision), as_batch(case.images[:3], device)
    for _ in range(WARM_UP):
        detector.embed_and_route(batch)
    with waiting_is_an_error(device):
        features, distances, ratios = detector.embed_and_route(batch)
    assert features.embeddings.device.type == distances.device.type == ratios.device.type == device.type
    assert distances.argmin(1).tolist() == case.kinds[:3]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [[0], [2, 3], [0, 1, 2], [1, 0, 2, 3, 6]], ids=["one", "alike", "mixed", "more"])
@torch.inference_mode()
def test_maps_wait_for_nothing(case: Case, rows: list[int], precision: str, load: Load, device: torch.device) -> None:
    if case.is_wide and device.type == "cpu" and (precision == "bf16" or len(rows) > 1):
        pytest.skip("this takes a CPU minutes")
    detector, features = load(case.checkpoint, precision), moved(case.expected.features.rows(rows), device)
    kinds = [case.kinds[row] for row in rows]
    for _ in range(WARM_UP if device.type == "cuda" else 1):
        detector.products.maps(features, kinds)
    with waiting_is_an_error(device):
        maps = detector.products.maps(features, kinds)
    assert maps.nll.device.type == maps.anomaly.device.type == device.type
    assert maps.nll.isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("config", [tiny_config(), WIDE_MAIN], ids=["tiny", "wide"])
def test_a_training_step_waits_for_nothing(
    config: ModelConfig, first: bool, precision: str, device: torch.device
) -> None:
    side, is_wide = (28, True) if config is WIDE_MAIN else (4, False)
    if is_wide and device.type == "cpu":
        pytest.skip("this takes a CPU minutes")
    trainer = TaskTrainer(
        "nut", config, TrainingConfig(), Base(config, seed=1), first=first, device=device, precision=precision
    )
    embeddings = torch.randn(2, side, side, config.backbone.embedding_dim, device=device)
    for step in range(WARM_UP):
        trainer.step(embeddings, 1e-3 / (1 + step))
    with waiting_is_an_error(device):
        losses = [trainer.step(embeddings, 1e-3 / (2 + step))[0] for step in range(3)]
    assert all(loss.device.type == device.type and loss.isfinite() for loss in losses)
