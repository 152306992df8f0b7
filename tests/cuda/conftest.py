"""What the tests on a GPU share: the device, and cases of which it is known what a CPU makes of them.

All are skipped where there is no CUDA device. With ``MOLEFLOW_TEST_DEVICE=cpu`` in the environment they run with the
CPU in its place, which says nothing about a GPU but shows that the tests themselves work; what only CUDA has is skipped
then.
"""

import functools
import os

import pytest
import torch
from device_cases import CONFIGS, Case, Load, MakeCase, write_case
from tiny_fixtures import tiny_backbone  # noqa: F401

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The device under test."""
    name = os.environ.get("MOLEFLOW_TEST_DEVICE", "cuda")
    if name != "cpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    return torch.device(name)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for tests of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("only CUDA has this")
    return device


@pytest.fixture(scope="session")
def load(device: torch.device) -> Load:
    """Loads a detector on the device, once."""

    @functools.cache
    def loaded(checkpoint: Checkpoint, precision: str) -> Detector:
        return Detector(checkpoint, device=str(device), precision=precision)

    return loaded


@pytest.fixture(scope="session")
def make_case(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> MakeCase:
    """Makes a case, once."""
    return functools.cache(lambda name: write_case(name, tmp_path_factory.mktemp("case") / "factory.safetensors"))


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest, make_case: MakeCase) -> Case:
    """Each of the cases."""
    return make_case(request.param)


@pytest.fixture(params=["tiny main", "tiny fast"])
def tiny(request: pytest.FixtureRequest, make_case: MakeCase) -> Case:
    """Each of the tiny cases."""
    return make_case(request.param)


@pytest.fixture(params=["wide main", "wide fast"])
def wide(request: pytest.FixtureRequest, make_case: MakeCase) -> Case:
    """Each of the wide cases."""
    return make_case(request.param)
