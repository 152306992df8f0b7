"""Host names and origins that are allowed."""

from collections.abc import Iterator

import httpx
import pytest
from running import Running, run_server
from sample_images import encoded, sample_image

IMAGE = encoded(sample_image())


def post(service: Running, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post("/predict?map=none", content=IMAGE, headers={"content-type": "image/png"} | named)


@pytest.fixture(scope="module")
def proxied() -> Iterator[Running]:
    """A service with a list of host names and one allowed origin."""
    with run_server(
        allowed_hosts="inspection.factory,*.plant.example", cors_origins="https://mes.factory:8443"
    ) as running:
        yield running


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1:1",
        "[::1]:8000",
        "[::1]",
        "moleflow:8000",
        "",
    ],
)
def test_a_loopback_service_accepts_names_of_this_machine(service: Running, host: str) -> None:
    assert service.client.get("/tasks", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost/evil.example",
        "[::1",
        "192.168.1.7",
        ":8000",
    ],
)
@pytest.mark.parametrize("path", ["/", "/tasks", "/metrics", "/docs", "/openapi.json"])
def test_dns_rebinding_is_rejected(service: Running, host: str, path: str) -> None:
    response = service.client.get(path, headers={"host": host})
    assert response.status_code == 421
    assert response.headers["content-type"] == "application/problem+json"
    assert "MOLEFLOW_ALLOWED_HOSTS" in response.json()["detail"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("inspection.factory", 200),
        ("Inspection.Factory:443", 200),
        ("line1.plant.example", 200),
        ("127.0.0.1", 200),  # where it listens
        ("plant.example", 421),
        ("plant.example.evil", 421),
        ("localhost", 421),
        ("moleflow", 421),
    ],
)
def test_only_listed_host_names_are_allowed(proxied: Running, host: str, status: int) -> None:
    assert proxied.client.get("/tasks", headers={"host": host}).status_code == status


def test_health_probes_work_at_any_address(proxied: Running) -> None:
    for path in ("/health/live", "/health/ready"):
        assert proxied.client.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 200
        assert proxied.client.get(path, headers={"host": "evil.example"}).status_code == 421


def test_a_network_service_accepts_any_host_name_by_default() -> None:
    with run_server(host="0.0.0.0") as running:
        assert running.client.get("/tasks", headers={"host": "inspection.factory"}).status_code == 200


def test_a_client_other_than_a_browser_needs_no_origin(service: Running) -> None:
    assert post(service).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"},
        {"origin": "http://localhost", "host": "localhost:80"},
        {"origin": "https://localhost", "host": "localhost"},
        {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
        {"origin": "https://inspection.factory", "x_forwarded_host": "inspection.factory"},
        {"origin": "https://inspection.factory", "x_forwarded_host": "inspection.factory:443, 10.0.0.1"},
        {"origin": "http://inspection.factory:8080", "host": "localhost", "x_forwarded_host": "inspection.factory"},
        {"origin": "https://inspection.factory", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
)
def test_the_services_own_page_may_predict(service: Running, headers: dict[str, str]) -> None:
    assert post(service, **headers).status_code == 200


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "null", "sec_fetch_site": "same-origin"},
    {"origin": "http://localhost:3000", "host": "localhost:8000"},
    {"origin": "http://localhost:3000", "host": "localhost:8000", "sec_fetch_site": "same-site"},
    {"origin": "http://localhost.evil.example", "host": "localhost"},
    {"origin": "http://localhost@evil.example", "host": "localhost"},
    {"origin": "file://", "host": "localhost"},
    {"origin": "chrome-extension://localhost", "host": "localhost"},
    {"origin": "localhost", "host": "localhost"},
    {"origin": "", "host": "localhost"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_origin_may_not_predict(service: Running, headers: dict[str, str]) -> None:
    images = len(service.detector.batches)
    response = post(service, **headers)
    assert response.status_code == 403
    assert "MOLEFLOW_CORS_ORIGINS" in response.json()["detail"]
    assert len(service.detector.batches) == images


def test_only_listed_origins_may_read_responses(service: Running) -> None:
    response = service.client.get("/tasks", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in service.client.options("/predict", headers=asked).headers


def test_a_listed_page_may_predict_and_read_responses_and_errors(proxied: Running) -> None:
    origin, host = "https://mes.factory:8443", "inspection.factory"
    for response in (
        post(proxied, origin=origin, host=host, accept="image/png"),
        post(proxied, origin=origin, host=host, accept="text/html"),
        post(proxied, origin=origin, host="evil.example"),
    ):
        assert response.headers["access-control-allow-origin"] == origin
        assert "MoLEFlow-Verdict" in response.headers["access-control-expose-headers"]
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    assert proxied.client.options("/predict", headers=asked).headers["access-control-allow-origin"] == origin


def test_an_unlisted_page_is_rejected_while_another_is_listed(proxied: Running) -> None:
    response = post(proxied, origin="https://mes.factory", host="inspection.factory")
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_all_pages_may_predict_with_a_wildcard() -> None:
    with run_server(cors_origins="*") as running:
        response = post(running, origin="https://anywhere.example")
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


def test_a_query_of_thousands_of_bytes_is_rejected(service: Running) -> None:
    response = service.client.post("/predict?" + "a=&" * 3000, content=IMAGE)
    assert (response.status_code, response.json()["status"]) == (414, 414)


SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/docs", 200),
        ("GET", "/page/app.js", 200),
        ("GET", "/swagger/swagger-ui.css", 200),
        ("GET", "/tasks", 200),
        ("GET", "/metrics", 200),
        ("HEAD", "/tasks", 200),
        ("POST", "/predict", 422),
        ("GET", "/nothing", 404),
        ("GET", "/page/nothing", 404),
        ("PUT", "/page/app.js", 405),
        ("OPTIONS", "/predict", 405),
        ("GET", "/docs/", 307),
    ],
)
def test_every_response_has_security_headers(service: Running, method: str, path: str, status: int) -> None:
    response = service.client.request(method, path)
    assert response.status_code == status
    assert {name: response.headers.get(name) for name in SECURITY} == SECURITY
    policy = response.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_an_internal_error_has_security_headers(service: Running) -> None:
    import numpy as np

    response = service.predict(encoded(np.full((60, 90, 3), 255, np.uint8)))
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"


def test_an_error_for_malformed_http_has_security_headers(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-content-type-options: nosniff" in answer
