"""The health check of the container, run against a small server."""

import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

HEALTHCHECK = Path(__file__).parents[2] / "docker/healthcheck.py"


@contextmanager
def server(status: int) -> Iterator[int]:
    """A local server that responds to ``/health/ready`` with ``status``; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            body = b"the reason"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        try:
            yield http_server.server_port
        finally:
            http_server.shutdown()
            thread.join()


def check(port: int, host: str = "0.0.0.0", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MOLEFLOW_HOST": host, "MOLEFLOW_PORT": str(port)} | variables
    return subprocess.run(
        [sys.executable, str(HEALTHCHECK)], env=environment, capture_output=True, text=True, check=False
    )


def test_a_ready_server_is_healthy() -> None:
    with server(200) as port:
        assert check(port).returncode == 0


def test_a_server_bound_to_one_address_is_checked_there() -> None:
    with server(200) as port:
        assert check(port, host="127.0.0.1").returncode == 0


def test_a_server_that_is_not_ready_is_unhealthy_and_its_response_is_printed() -> None:
    with server(503) as port:
        result = check(port)
    assert result.returncode == 1
    assert "503" in result.stdout
    assert "the reason" in result.stdout


def test_a_missing_server_is_unhealthy() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = check(unused.getsockname()[1])
    assert result.returncode == 1
    assert "does not respond" in result.stdout


def test_the_check_never_goes_through_a_proxy() -> None:
    with server(200) as port:
        assert check(port, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9").returncode == 0


@pytest.mark.parametrize(
    ("value", "port"), [("", 8000), ("tcp://10.96.0.12:8000", 8000), ("udp://10.96.0.12:53", 8000), ("9000", 9000)]
)
def test_the_port_comes_from_the_variable_unless_kubernetes_set_it(value: str, port: int) -> None:
    assert runpy.run_path(str(HEALTHCHECK))["chosen_port"](value) == port


def test_an_invalid_port_variable_is_reported() -> None:
    result = check(0, MOLEFLOW_PORT="eight")
    assert result.returncode == 1
    assert "MOLEFLOW_PORT cannot be 'eight'" in result.stderr
    assert "Traceback" not in result.stderr
