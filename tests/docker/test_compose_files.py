"""The compose files, checked as data, without Docker."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from moleflow.service.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parents[2]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def environment(service: dict[str, Any]) -> dict[str, str | None]:
    """The service's environment; ``None`` for values passed on from the host."""
    pairs = (entry.partition("=") for entry in service["environment"])
    return {name: value if equals else None for name, equals, value in pairs}


@pytest.fixture
def service() -> dict[str, Any]:
    return read("compose.yaml")["services"]["moleflow"]


def test_the_image_is_built_from_a_dockerfile_that_exists(service: dict[str, Any]) -> None:
    assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_every_build_argument_is_one_that_the_dockerfile_declares(service: dict[str, Any]) -> None:
    lines = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8").splitlines()
    declared = {line.removeprefix("ARG ").partition("=")[0] for line in lines if line.startswith("ARG ")}
    assert set(service["build"]["args"]) == declared


def test_every_setting_of_the_service_can_be_set_in_the_environment(service: dict[str, Any]) -> None:
    settings = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields}
    assert set(environment(service)) == settings | {"MOLEFLOW_THREADS"}


def test_the_service_is_published_on_this_machine_only_by_default(service: dict[str, Any]) -> None:
    assert service["ports"] == ["${MOLEFLOW_PUBLISH:-127.0.0.1}:${MOLEFLOW_PORT:-8000}:8000"]


def test_the_published_port_is_the_one_the_server_listens_on(service: dict[str, Any]) -> None:
    container_port = service["ports"][0].rpartition(":")[2]
    assert environment(service)["MOLEFLOW_PORT"] == container_port


def test_checkpoints_are_stored_on_a_named_volume(service: dict[str, Any]) -> None:
    assert "models:/models" in service["volumes"]
    assert "models" in read("compose.yaml")["volumes"]


def test_data_is_mounted_read_only(service: dict[str, Any]) -> None:
    (data,) = [volume for volume in service["volumes"] if ":/data" in volume]
    assert data.endswith(":ro")


def test_the_container_has_minimal_privileges(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_the_stop_grace_period_is_longer_than_the_shutdown(service: dict[str, Any]) -> None:
    drain_seconds = Settings.model_fields["shutdown_timeout_seconds"].default
    assert int(service["stop_grace_period"].removesuffix("s")) > drain_seconds


def test_the_gpu_file_changes_only_services_that_the_main_file_has() -> None:
    assert read("compose.gpu.yaml")["services"].keys() <= read("compose.yaml")["services"].keys()


def test_the_gpu_file_reserves_and_requires_an_nvidia_gpu() -> None:
    service = read("compose.gpu.yaml")["services"]["moleflow"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert environment(service) == {"MOLEFLOW_DEVICE": "cuda"}
