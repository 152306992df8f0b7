"""The Triton kernels of a training step give the same values and gradients as the plain operators."""

import importlib.util
from pathlib import Path

import pytest
from interpreted import failures_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

KERNELS = {
    "couplings, permuted": "couplings(76, MOLE_COUPLING, 38, permuted=True)",
    "couplings, second half first": "couplings(20, DIA_COUPLING, 0, permuted=False)",
    "convolutions, several blocks, wide grid": "convolutions(1, (1, 33), 66)",
    "convolutions, several images": "convolutions(2, (2, 2), 5)",
    "gradients of kernels, several parts": "kernel_gradients(3, (3, 2), 5, parts=2)",
    "gradients of kernels, wide grid": "kernel_gradients(1, (1, 35), 5, parts=1)",
    "rectifiers": "rectifiers()",
    "likelihoods": "likelihoods()",
}

STEPS = {
    "the first task": "step(first=True, coupling_blocks=2)",
    "the first task, in bf16": "step(first=True, precision='bf16', spatial_context_kernel=None)",
    "a later task": "step(first=False, adapter='zca', spatial_context_kernel=None)",
    "dense layers, no context": "step(first=False, subnet='linear', dia_blocks=0, **BARE)",
    "both kinds of DIA alone": "step(first=True, coupling_blocks=0, dia_blocks=2, **BARE)",
}


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """What each call raised, if anything."""
    return failures_of(Path(__file__).with_name("kernel_checks.py"), [*KERNELS.values(), *STEPS.values()])


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_the_values_and_gradients_of_plain_operators(failures: dict[str, str], name: str) -> None:
    assert failures[KERNELS[name]] == ""


@pytest.mark.parametrize("name", STEPS)
def test_a_step_by_kernels_has_the_loss_and_gradients_of_the_plain_one(failures: dict[str, str], name: str) -> None:
    assert failures[STEPS[name]] == ""
