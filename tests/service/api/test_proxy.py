"""The service behind nginx, under a path prefix."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from running import PATIENCE, Running, eventually, run_server
from sample_images import encoded, sample_image

from moleflow.service.listening import bind

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
PREFIX = "/factory/inspection"

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx on this machine: apt-get install nginx-light")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 100m;
        location {prefix}/ {{
            proxy_pass http://127.0.0.1:{service}{target};
            {headers}
        }}
    }}
}}
"""
HOST_AS_ASKED = "proxy_set_header Host $http_host;"
HOST_FORWARDED = "proxy_set_header X-Forwarded-Host $http_host;"


@dataclass
class Proxy:
    """A running proxy: its URL, the service, and a client of the proxy."""

    url: str
    service: Running
    client: httpx.Client


def start(folder: Path, service: Running, target: str, headers: str) -> tuple[subprocess.Popen[bytes], int]:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    file = folder / "nginx.conf"
    file.write_text(
        CONFIGURATION.format(
            folder=folder, port=port, prefix=PREFIX, service=service.port, target=target, headers=headers
        )
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")])
    return process, port


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(
    scope="module",
    params=[("/", HOST_AS_ASKED), ("/", HOST_FORWARDED), ("", HOST_AS_ASKED)],
    ids=["prefix stripped, Host forwarded", "prefix stripped, X-Forwarded-Host set", "prefix kept"],
)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    target, headers = request.param
    with run_server(root_path=PREFIX) as service:
        process, port = start(tmp_path_factory.mktemp("nginx"), service, target, headers)
        try:
            url = f"http://127.0.0.1:{port}{PREFIX}/"
            assert eventually(lambda: answers(f"{url}health/live", process))
            with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                yield Proxy(url, service, client)
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "docs",
        "openapi.json",
        "tasks",
        "tasks/green",
        "health/ready",
        "metrics",
        "page/app.js",
        "swagger/swagger-ui.css",
    ],
)
def test_every_route_works_under_the_prefix(proxy: Proxy, path: str) -> None:
    assert proxy.client.get(path).status_code == 200
    assert proxy.client.head(path).status_code == 200


@pytest.mark.parametrize("path", ["/", "/tasks", "/health/ready", "/page/app.js"])
def test_probes_work_without_the_prefix(proxy: Proxy, path: str) -> None:
    assert proxy.service.client.get(path).status_code == 200


def test_the_schema_names_the_prefix(proxy: Proxy) -> None:
    assert proxy.client.get("openapi.json").json()["servers"] == [{"url": PREFIX}]


@pytest.mark.parametrize("path", ["tasks/", "docs/", "health/live/"])
def test_a_redirect_keeps_the_prefix(proxy: Proxy, path: str) -> None:
    response = proxy.client.get(path, follow_redirects=True)
    assert response.status_code == 200
    assert str(response.url) == proxy.url + path.rstrip("/")
    assert [step.status_code for step in response.history] == [307]


def test_the_own_page_may_predict_through_the_proxy_and_a_foreign_one_may_not(proxy: Proxy) -> None:
    origin = proxy.url.removesuffix(f"{PREFIX}/")
    for sender, status in ((origin, 200), ("https://evil.example", 403)):
        response = proxy.client.post("predict?map=none", content=encoded(sample_image()), headers={"origin": sender})
        assert response.status_code == status


def test_the_routes_are_counted_without_the_prefix(proxy: Proxy) -> None:
    proxy.client.get("tasks/green")
    assert proxy.service.metric("moleflow_requests_total", route="/tasks/{name}", status="200") >= 1
