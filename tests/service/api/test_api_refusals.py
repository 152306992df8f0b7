"""A refusal is read by whoever gets it, although the upload that it refuses was still on its way."""

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
from rgb_images import encoded, rgb_image
from running import PATIENCE, Running, eventually, free_port, read_answer, request_head, run_server

UPLOAD = bytes(7_700_000)
"""More than all buffers between a client and the service hold."""

REFUSED = {
    404: ("POST", "/predict?task=bottle", {}),
    405: ("PUT", "/predict", {}),
    406: ("POST", "/predict", {"Accept": "text/html"}),
    413: ("POST", "/predict", {}),
    415: ("POST", "/predict", {"Content-Type": "text/plain"}),
    422: ("POST", "/predict?tsk=red", {}),
}
"""A request for each status that is decided before the body has come; for 413, that is by its length."""


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with run_server(max_upload_bytes=1_000_000) as running:
        yield running


def by_urllib(url: str, method: str, headers: dict[str, str], body: bytes = UPLOAD) -> tuple[int, dict[str, object]]:
    """Status and problem by the client that asks with ``Connection: close`` and reads nothing until all is sent."""
    request = urllib.request.Request(url, body, {"Content-Type": "image/png"} | headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refusal, urllib.request.urlopen(request, timeout=PATIENCE):
        pass
    with refusal.value as answer:
        return answer.code, json.load(answer)


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_reaches_a_client_that_sends_all_before_it_reads(small: Running, status: int) -> None:
    method, path, headers = REFUSED[status]
    for _ in range(3):
        found, problem = by_urllib(small.url + path, method, headers)
        assert found == problem["status"] == status


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_leaves_a_kept_connection_in_order(small: Running, status: int) -> None:
    method, path, headers = REFUSED[status]
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=PATIENCE)
    for _ in range(3):
        connection.request(method, path, UPLOAD, {"Content-Type": "image/png"} | headers)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["status"]) == (status, status)
    connection.request("GET", "/health/live")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_full_house_tells_everyone_when_to_come_again() -> None:
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


def test_an_answer_other_than_a_refusal_reaches_a_client_that_sends_too_much(small: Running) -> None:
    request = urllib.request.Request(small.url + "/tasks", UPLOAD, method="GET")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200


def test_what_is_no_http_is_told_so_however_much_of_it_comes(small: Running) -> None:
    with small.connect() as connection:
        connection.sendall(b"\x16\x03\x01" * 2_000_000)
        status, headers, body = read_answer(connection)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 400


def test_a_client_that_waits_for_100_continue_is_refused_without_sending_its_body(small: Running) -> None:
    with small.connect() as connection:
        head = request_head(5_000_000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        connection.sendall(head)
        status, _, _ = read_answer(connection)
        assert status == 413
        assert connection.recv(1) == b""  # closed at once


def test_a_refused_client_that_never_ends_its_upload_is_cut(small: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.service.connections.transport._THROW_AWAY_BYTES", 20_000_000)
    for ending in (b"", b"Connection: close\r\n"):
        with small.connect() as connection, pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            connection.sendall(request_head(10**12).replace(b"\r\n\r\n", b"\r\n" + ending + b"\r\n"))
            for _ in range(1000):
                connection.sendall(bytes(1_000_000))


@pytest.mark.parametrize("ending", ["", "Connection: close\r\n"])
def test_a_refused_client_that_falls_silent_is_cut(
    small: Running, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("moleflow.service.connections.transport._SILENCE_SECONDS", 0.2)
    with small.connect() as connection:
        connection.sendall(request_head(10**7).replace(b"\r\n\r\n", f"\r\n{ending}\r\n".encode()))
        assert read_answer(connection)[0] == 413
        assert eventually(lambda: small.metric("moleflow_connections") == 1)  # the one that asks


@pytest.mark.parametrize("ending", ["", "Connection: close\r\n"])
def test_a_refused_client_that_drips_is_cut(small: Running, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr("moleflow.service.connections.transport._THROW_AWAY_SECONDS", 0.2)
    with small.connect() as connection:
        connection.sendall(request_head(10**7).replace(b"\r\n\r\n", f"\r\n{ending}\r\n".encode()))
        assert read_answer(connection)[0] == 413

        def is_cut() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        assert eventually(is_cut)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [[], ["-H", "Connection: close"], ["--http1.0"], ["-H", "Expect:"]])
def test_curl_shows_the_refusal(small: Running, tmp_path: Path, options: list[str]) -> None:
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
    """nginx before the service, speaking HTTP/1.0 to it."""
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
def test_a_refusal_passes_a_proxy_that_speaks_http_1_0(proxy: str, status: int, folder: str) -> None:
    method, path, headers = REFUSED[status]
    found, problem = by_urllib(proxy + folder + path, method, headers)
    assert found == problem["status"] == status


def test_an_image_passes_the_proxy(proxy: str) -> None:
    request = urllib.request.Request(proxy + "/predict?map=none", encoded(rgb_image()), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("version", ["9.9", "2.0"])
def test_a_version_of_http_that_is_not_spoken_is_refused(small: Running, version: str) -> None:
    with small.connect() as connection:
        connection.sendall(f"GET /health/live HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("lines", "status"), [(90, b"200"), (110, b"431"), (3000, b"431")])
def test_a_head_of_very_many_lines_is_refused(small: Running, lines: int, status: bytes) -> None:
    with small.connect() as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * lines + b"\r\n")
        assert connection.recv(65536).split()[1] == status


def test_many_requests_at_once_are_not_taken_for_one_of_many_lines(small: Running) -> None:
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with small.connect() as connection:
        connection.sendall(request * 60 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = b""
        while piece := connection.recv(65536):
            answers += piece
    assert answers.count(b"HTTP/1.1 200") == 61
