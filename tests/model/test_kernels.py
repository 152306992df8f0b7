"""Kernels of prediction on a GPU compute what plain operators do, and stacked experts what merged ones do."""

import importlib.util
from pathlib import Path

import pytest
from interpreted import failures_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

LAYERS = {
    "tiles that are not filled": "linear_layers(70, SMALL, relu=True)",
    "tiles of full depth": "linear_layers(64, LARGE, relu=False)",
}
FLOWS = {
    "context, mixer, both kinds of blocks": "flows(spatial_context_kernel=3, scale_context_kernel=3, dia_blocks=2)",
    "whitening, a MoLE block alone": "flows(adapter='zca')",
}
WINDOWS = {
    "fewer outputs than channels": "pooled_windows(48, 40, 'float32')",
    "fewer outputs than channels, fp16": "pooled_windows(48, 40, 'float16')",
    "more outputs than channels": "pooled_windows(10, 96, 'float32')",
    "more outputs than channels, fp16": "pooled_windows(10, 96, 'float16')",
    "more patches than a tile": "pooled_windows(4, 6, 'float32', height=5)",
}
OTHERS = [
    "depthwise_convolutions()",
    "flows_of_other_batches()",
    "exchanged_experts()",
    "damaged_experts()",
    "cleared_experts()",
    "medians(7)",
    "medians(6)",
    "medians_with_nan()",
]


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """What each call raised, if anything."""
    return failures_of(
        Path(__file__).with_name("kernel_checks.py"), [*LAYERS.values(), *FLOWS.values(), *WINDOWS.values(), *OTHERS]
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_layer_computes_each_row_by_the_weights_of_its_image(failures: dict[str, str], name: str) -> None:
    assert failures[LAYERS[name]] == ""


def test_a_depthwise_convolution_equals_pytorchs_and_copies_the_first_channels(failures: dict[str, str]) -> None:
    assert failures["depthwise_convolutions()"] == ""


@pytest.mark.parametrize("name", FLOWS)
def test_a_stacked_flow_computes_each_image_by_the_expert_of_its_slot(failures: dict[str, str], name: str) -> None:
    assert failures[FLOWS[name]] == ""


def test_an_image_has_the_same_likelihoods_in_every_batch(failures: dict[str, str]) -> None:
    assert failures["flows_of_other_batches()"] == ""


def test_stacked_experts_compute_the_maps_of_more_products_than_they_keep(failures: dict[str, str]) -> None:
    assert failures["exchanged_experts()"] == ""


def test_a_damaged_expert_fails_the_images_of_its_product_alone(failures: dict[str, str]) -> None:
    assert failures["damaged_experts()"] == ""


def test_stacked_experts_that_were_cleared_are_merged_again(failures: dict[str, str]) -> None:
    assert failures["cleared_experts()"] == ""


@pytest.mark.parametrize("name", WINDOWS)
def test_pooled_windows_are_the_embedding_of_a_stage(failures: dict[str, str], name: str) -> None:
    assert failures[WINDOWS[name]] == ""


@pytest.mark.parametrize("rows", [7, 6])
def test_the_lower_median_is_pytorchs(failures: dict[str, str], rows: int) -> None:
    assert failures[f"medians({rows})"] == ""


def test_a_nan_is_beyond_the_infinity_of_its_sign_for_the_lower_median(failures: dict[str, str]) -> None:
    assert failures["medians_with_nan()"] == ""
