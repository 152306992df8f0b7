"""The service conforms to its schema on valid and invalid requests generated from it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from running import PATIENCE, Running

from moleflow.service.api.app import create_app
from moleflow.service.api.deadline import TIMEOUT_HEADER
from moleflow.service.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="Schemathesis is not installed: pip install schemathesis")

OPERATIONS = 24


schema = schemathesis.openapi.from_dict(create_app(Settings(checkpoint="dummy.safetensors")).openapi())


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_response_conforms_to_the_schema(case: Any, service: Running) -> None:
    # A schema cannot express what an image is, or that form and query must not contradict each other.
    unknowable = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")] if case.method != "GET" else []
    if case.path.endswith(":train"):  # also the path of a product that is called so, with other methods
        unknowable.append(schemathesis.checks.CHECKS.get_one("allow_header_conformance"))
    if str((case.headers or {}).get(TIMEOUT_HEADER, "")).isdecimal():
        case.headers[TIMEOUT_HEADER] = "3600000"  # a shorter one would rightly get a 504
    case.call_and_validate(base_url=service.url, excluded_checks=unknowable, timeout=PATIENCE)


def test_every_operation_is_described(service: Running) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    assert sum(len(operations) for operations in paths.values()) == OPERATIONS
