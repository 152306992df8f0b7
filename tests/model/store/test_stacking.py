"""Experts are stacked where kernels run and compute what merged experts do."""

import importlib.util

import pytest
import torch

from moleflow.model import products
from moleflow.model.config import BackboneConfig, FlowConfig, ModelConfig
from moleflow.model.flow.expert import Base
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.experts import MergedExperts, can_stack

CPU = torch.device("cpu")
FLOW = FlowConfig(coupling_blocks=1, dia_blocks=0, lora_rank=1)
CONFIG = ModelConfig(backbone=BackboneConfig(image_size=96, strides=(8, 16), embedding_dim=8), flow=FLOW)
SMALLER = CONFIG.model_copy(update={"backbone": BackboneConfig(image_size=88, strides=(8, 16), embedding_dim=8)})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_experts_are_stacked_in_half_precision(precision: str) -> None:
    assert can_stack(CONFIG, Base(CONFIG), precision)


def test_experts_are_not_stacked_in_full_precision() -> None:
    assert not can_stack(CONFIG, Base(CONFIG), "fp32")


def test_experts_with_bases_of_their_own_are_not_stacked() -> None:
    assert not can_stack(CONFIG, None, "bf16")


def test_experts_of_images_that_are_less_than_a_tile_are_not_stacked() -> None:
    assert not can_stack(SMALLER, Base(SMALLER), "bf16")


def test_experts_whose_adapter_has_no_kernel_are_not_stacked() -> None:
    config = CONFIG.model_copy(update={"flow": FLOW.model_copy(update={"adapter": "soft_ln"})})
    assert not can_stack(config, Base(config), "bf16")


def test_experts_on_a_base_that_scales_channels_are_not_stacked() -> None:
    base = Base(CONFIG)
    base.blocks[0].channel_scale[3] = 1.5
    assert not can_stack(CONFIG, base, "bf16")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(("runs", "stackable"), [(True, True), (True, False), (False, True)])
def test_a_checkpoints_experts_are_stacked_if_kernels_run_and_they_can_be(
    runs: bool, stackable: bool, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moleflow.model.store.stacked_experts import StackedExperts

    monkeypatch.setattr(products, "can_run_kernels", lambda device: runs)
    monkeypatch.setattr(products, "can_stack", lambda config, base, precision: stackable)
    experts = products._experts(checkpoint, CPU, "fp32", 2)
    assert type(experts) is (StackedExperts if runs and stackable else MergedExperts)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_there_are_no_more_slots_than_products(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "can_run_kernels", lambda device: True)
    monkeypatch.setattr(products, "can_stack", lambda config, base, precision: True)
    assert products._experts(checkpoint, CPU, "fp32", 100).limit == 3
