"""Clients receive error responses even while they are still uploading."""

import getpass
import http.client
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import PATIENCE, Running, eventually, free_port, read_response, request_head, run_server
from sample_images import encoded, sample_image

UPLOAD = bytes(7_700_000)
"""More than all buffers between client and service can hold."""

REFUSED = {
    404: ("POST", "/predict?task=bottle", {}),
    405: ("PUT", "/predict", {}),
    406: ("POST", "/predict", {"Accept": "text/html"}),
    413: ("POST", "/predict", {}),
    415: ("POST", "/predict", {"Content-Type": "text/plain"}),
    422: ("POST", "/predict?tsk=red", {}),
}
"""A request for each status that is sent before the body arrives."""


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with run_server(max_upload_bytes=1_000_000) as running:
        yield running


def by_urllib(url: str, method: str, headers: dict[str, str], body: bytes = UPLOAD) -> tuple[int, dict[str, object]]:
    """Status and problem for a client that sends ``Connection: close`` and everything before it reads."""
    request = urllib.request.Request(url, body, {"Content-Type": "image/png"} | headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refusal, urllib.request.urlopen(request, timeout=PATIENCE):
        pass
    with refusal.value as answer:
        return answer.code, json.load(answer)


@pytest.mark.parametrize("status", REFUSED)
def test_an_error_reaches_a_client_that_sends_everything_before_reading(small: Running, status: int) -> None:
    method, path, headers = REFUSED[status]
    for _ in range(3):
        found, problem = by_urllib(small.url + path, method, headers)
        assert found == problem["status"] == status


@pytest.mark.parametrize("status", REFUSED)
def test_a_connection_works_after_a_rejected_upload(small: Running, status: int) -> None:
    method, path, headers = REFUSED[status]
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=PATIENCE)
    for _ in range(3):
        connection.request(method, path, UPLOAD, {"Content-Type": "image/png"} | headers)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["status"]) == (status, status)
    connection.request("GET", "/health/live")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_full_queue_sends_retry_after() -> None:
    with run_server(queue_size=1) as running:
        holder = running.hold()
        request = urllib.request.Request(running.url + "/predict", UPLOAD, {"Content-Type": "image/png"})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=PATIENCE)
        with refusal.value as answer:
            assert answer.code == 429
            assert int(answer.headers["Retry-After"]) >= 1
        running.detector.gate.set()
        holder.join()


def test_a_success_response_reaches_a_client_that_sends_too_much(small: Running) -> None:
    request = urllib.request.Request(small.url + "/tasks", UPLOAD, method="GET")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200


def test_malformed_http_gets_an_error_however_much_is_sent(small: Running) -> None:
    with small.connect() as connection:
        connection.sendall(b"\x16\x03\x01" * 2_000_000)
        status, headers, body = read_response(connection)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 400


def test_a_client_that_waits_for_100_continue_is_rejected_without_sending_its_body(small: Running) -> None:
    with small.connect() as connection:
        head = request_head(5_000_000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        connection.sendall(head)
        status, _, _ = read_response(connection)
        assert status == 413
        assert connection.recv(1) == b""  # closed at once


def test_a_rejected_client_that_never_stops_sending_is_disconnected(
    small: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moleflow.service.connections.transport._DISCARD_BYTES", 20_000_000)
    for ending in (b"", b"Connection: close\r\n"):
        with small.connect() as connection, pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            connection.sendall(request_head(10**12).replace(b"\r\n\r\n", b"\r\n" + ending + b"\r\n"))
            for _ in range(1000):
                connection.sendall(bytes(1_000_000))


@pytest.mark.parametrize("ending", ["", "Connection: close\r\n"])
def test_a_rejected_client_that_falls_silent_is_disconnected(
    small: Running, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("moleflow.service.connections.transport._SILENCE_SECONDS", 0.2)
    with small.connect() as connection:
        connection.sendall(request_head(10**7).replace(b"\r\n\r\n", f"\r\n{ending}\r\n".encode()))
        assert read_response(connection)[0] == 413
        assert eventually(lambda: small.metric("moleflow_connections") == 1)  # that of /metrics


@pytest.mark.parametrize("ending", ["", "Connection: close\r\n"])
def test_a_rejected_client_that_sends_slowly_is_disconnected(
    small: Running, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("moleflow.service.connections.transport._DISCARD_SECONDS", 0.2)
    with small.connect() as connection:
        connection.sendall(request_head(10**7).replace(b"\r\n\r\n", f"\r\n{ending}\r\n".encode()))
        assert read_response(connection)[0] == 413

        def is_cut() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        assert eventually(is_cut)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [[], ["-H", "Connection: close"], ["--http1.0"], ["-H", "Expect:"]])
def test_curl_shows_the_error(small: Running, tmp_path: Path, options: list[str]) -> None:
    upload = tmp_path / "upload.png"
    upload.write_bytes(UPLOAD)
    command = ["curl", "-sS", "-w", "%{http_code}", "-o", str(tmp_path / "answer"), *options, "--data-binary"]
    done = subprocess.run(
        [*command, f"@{upload}", "-H", "Content-Type: image/png", small.url + "/predict"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, "413"), done.stderr
    assert json.loads((tmp_path / "answer").read_text())["status"] == 413


NGINX = """
daemon off;
user {user};
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_max_body_size 100m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{service}; proxy_http_version 1.0; }}
        location /unbuffered/ {{
            proxy_pass http://127.0.0.1:{service}/;
            proxy_http_version 1.0;
            proxy_request_buffering off;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def proxy(small: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An nginx that proxies the service with HTTP/1.0."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(user=getpass.getuser(), folder=folder, port=port, service=small.port))
    with subprocess.Popen(
        [nginx, "-c", configuration, "-p", folder, "-e", "stderr"], stderr=subprocess.DEVNULL
    ) as running:

        def is_up() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        assert eventually(is_up)
        yield f"http://127.0.0.1:{port}"
        running.terminate()


@pytest.mark.parametrize("folder", ["", "/unbuffered"])
@pytest.mark.parametrize("status", REFUSED)
def test_an_error_passes_through_an_http_1_0_proxy(proxy: str, status: int, folder: str) -> None:
    method, path, headers = REFUSED[status]
    found, problem = by_urllib(proxy + folder + path, method, headers)
    assert found == problem["status"] == status


def test_an_image_passes_through_the_proxy(proxy: str) -> None:
    request = urllib.request.Request(
        proxy + "/predict?map=none", encoded(sample_image()), {"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("version", ["9.9", "2.0"])
def test_an_unsupported_http_version_is_rejected(small: Running, version: str) -> None:
    with small.connect() as connection:
        connection.sendall(f"GET /health/live HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("lines", "status"), [(90, b"200"), (110, b"431"), (3000, b"431")])
def test_a_request_with_too_many_headers_is_rejected(small: Running, lines: int, status: bytes) -> None:
    with small.connect() as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * lines + b"\r\n")
        assert connection.recv(65536).split()[1] == status


def test_pipelined_requests_are_not_mistaken_for_one_with_many_headers(small: Running) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with small.connect() as connection:
        connection.sendall(request * 60 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = b""
        while piece := connection.recv(65536):
            answers += piece
    assert answers.count(b"HTTP/1.1 200") == 61
