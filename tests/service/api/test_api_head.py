"""HEAD works wherever GET does, with the same headers."""

import pytest
from running import Running

PATHS = ["/", "/docs", "/openapi.json", "/page/app.js", "/swagger/swagger-ui.css", "/tasks", "/tasks/green"]
PROBES = ["/health/live", "/health/ready"]
VARYING = {"date", "x-request-id"}


@pytest.mark.parametrize("path", [*PATHS, *PROBES, "/tasks/bottle", "/nothing", "/tasks/"])
def test_head_has_the_headers_of_get(service: Running, path: str) -> None:
    head, get = service.client.head(path), service.client.get(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers.keys() == get.headers.keys()
    if get.status_code == 200:
        assert {k: v for k, v in head.headers.items() if k not in VARYING} == {
            k: v for k, v in get.headers.items() if k not in VARYING
        }


def test_head_of_the_metrics_has_no_body(service: Running) -> None:
    response = service.client.head("/metrics")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/plain")


def test_the_connection_can_be_reused_after_head(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(
            b"HEAD /tasks HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health/live HTTP/1.1\r\nHost: localhost\r\n"
        )
        connection.sendall(b"Connection: close\r\n\r\n")
        answer = b""
        while received := connection.recv(65536):
            answer += received
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.endswith(b'{"status":"live"}')


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/predict", "POST"),
        ("GET", "/predict", "POST"),
        ("OPTIONS", "/predict", "POST"),
        ("POST", "/tasks", "GET, HEAD"),
        ("OPTIONS", "/tasks", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("DELETE", "/page/app.js", "GET, HEAD"),
        ("TRACE", "/", "GET, HEAD"),
        ("QUERY", "/predict", "POST"),
    ],
)
def test_an_unsupported_method_gets_the_supported_ones(service: Running, method: str, path: str, allowed: str) -> None:
    response = service.client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
