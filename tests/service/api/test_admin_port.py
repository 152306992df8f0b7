"""A second port for administration and metrics."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from forked import Processes
from running import PATIENCE, Running, free_port, run_server, serve_in_a_process
from sample_images import encoded, sample_image

from moleflow.model.errors import ConfigurationError
from moleflow.service.server import serve
from moleflow.service.settings import Settings

GOOD = encoded(sample_image())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with run_server(admin_port=free_port()) as running:
        yield running


@pytest.fixture
def admin(running: Running) -> Iterator[httpx.Client]:
    """A client of the second port."""
    with httpx.Client(base_url=f"http://127.0.0.1:{running.settings.admin_port}", timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics"), ("POST", "/admin/reload"), ("PATCH", "/tasks/red"), ("PUT", "/tasks/red/area")],
)
def test_administration_and_metrics_have_the_second_port(
    running: Running, admin: httpx.Client, method: str, path: str
) -> None:
    refused = running.client.request(method, path)
    assert (refused.status_code, refused.json()["type"]) == (404, "urn:moleflow:problem:not-found")
    assert "MOLEFLOW_ADMIN_PORT" in refused.json()["detail"]
    assert admin.request(method, path, json={"no": 1}).status_code in (200, 409, 422)


@pytest.mark.parametrize("path", ["/", "/tasks", "/openapi.json", "/samples", "/v2"])
def test_all_else_has_the_first(running: Running, admin: httpx.Client, path: str) -> None:
    assert running.client.get(path).status_code == 200
    assert admin.get(path).status_code == 404
    assert admin.post("/predict", content=GOOD).status_code == 404
    assert running.predict(GOOD).status_code == 200


def test_probes_have_both(running: Running, admin: httpx.Client) -> None:
    for client in (running.client, admin):
        assert client.get("/health/ready").status_code == 200
        assert client.get("/health/live").status_code == 200


def test_a_process_listens_on_both(processes: Processes) -> None:
    port = free_port()
    settings: dict[str, Any] = {"admin_port": port, "log_level": "critical", "cpu_workers": 1}
    with serve_in_a_process(processes, **settings) as process:
        url = process.line(0)
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).status_code == 200
        assert httpx.get(f"{url}/metrics", timeout=PATIENCE).status_code == 404


def test_a_port_that_is_in_use_is_named(running: Running) -> None:
    settings = Settings(checkpoint="dummy", port=0, admin_port=running.port, log_level="critical")
    with pytest.raises(ConfigurationError, match=r"admin_port \(MOLEFLOW_ADMIN_PORT\) cannot be"):
        serve(settings)
