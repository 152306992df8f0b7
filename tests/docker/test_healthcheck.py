"""The container's health check, run as the engine runs it, against a small server."""

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
    """A server on the loopback that answers ``/health/ready`` with ``status``; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            body = b"the reason"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Keep the test's output quiet."""

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


def test_a_server_bound_to_one_address_is_asked_there() -> None:
    with server(200) as port:
        assert check(port, host="127.0.0.1").returncode == 0


def test_a_server_that_is_not_ready_is_not_healthy_and_its_answer_is_told() -> None:
    with server(503) as port:
        result = check(port)
    assert result.returncode == 1
    assert "503" in result.stdout
    assert "the reason" in result.stdout


def test_no_server_is_not_healthy() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = check(unused.getsockname()[1])
    assert result.returncode == 1
    assert "does not answer" in result.stdout


def test_the_check_never_goes_through_a_proxy() -> None:
    with server(200) as port:
        assert check(port, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9").returncode == 0


@pytest.mark.parametrize(
    ("value", "port"), [("", 8000), ("tcp://10.96.0.12:8000", 8000), ("udp://10.96.0.12:53", 8000), ("9000", 9000)]
)
def test_the_port_is_the_variables_unless_it_is_what_kubernetes_tells_of_a_service(value: str, port: int) -> None:
    assert runpy.run_path(str(HEALTHCHECK))["chosen_port"](value) == port


def test_a_port_variable_that_is_no_port_is_told() -> None:
    result = check(0, MOLEFLOW_PORT="eight")
    assert result.returncode == 1
    assert "MOLEFLOW_PORT cannot be 'eight'" in result.stderr
    assert "Traceback" not in result.stderr
