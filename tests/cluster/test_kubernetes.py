"""The manifest for plain replicas, checked against the API of Kubernetes, and against the service."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from moleflow.service.metrics import Metrics
from moleflow.service.settings import ENVIRONMENT_PREFIX, Settings

pytestmark = pytest.mark.ray

MANIFEST = Path(__file__).parents[2] / "docker" / "kubernetes.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}


def test_every_object_fits_the_schema_of_its_kind(objects: dict[str, dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the extra dev-ray")
    for each in objects.values():
        validate.validate(each, validate.latest_version(), strict=True)
    broken = copy.deepcopy(objects["Deployment"])
    del broken["spec"]["selector"]
    with pytest.raises(validate.ValidationError, match="'selector' is a required property"):
        validate.validate(broken, validate.latest_version(), strict=True)


@pytest.fixture
def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (found,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def test_variables_are_settings_of_the_service(container: dict[str, Any]) -> None:
    named = {each["name"] for each in container["env"] if each["name"].startswith(ENVIRONMENT_PREFIX)}
    assert named
    assert named <= {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields}


def test_the_grace_period_covers_the_stop_of_the_service(objects: dict[str, dict[str, Any]]) -> None:
    default = {name: Settings.model_fields[name].default for name in ("lame_duck_seconds", "shutdown_timeout_seconds")}
    assert objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > sum(default.values())


def test_the_autoscaler_reads_a_metric_that_exists(objects: dict[str, dict[str, Any]]) -> None:
    (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    families = {each.name for each in Metrics().registry.collect()}
    assert metric["pods"]["metric"]["name"] in families
