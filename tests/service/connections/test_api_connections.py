"""Idle and slow connections do not displace active ones."""

import http.client
import json
import resource
import signal
import socket
import time
from contextlib import ExitStack

import httpx
import pytest
from forked import Processes
from running import PATIENCE, eventually, read_response, request_head, run_server, serve_in_a_process
from sample_images import encoded, sample_image

from moleflow.model.errors import ConfigurationError
from moleflow.service.connections.acceptor import connection_limit

GET = b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes within the socket's timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_silent_connection_is_closed() -> None:
    with run_server(header_timeout_seconds=0.3) as running, running.connect() as connection:
        assert is_closed(connection)


def test_an_incomplete_request_head_gets_an_error_and_is_closed() -> None:
    with run_server(header_timeout_seconds=0.3) as running, running.connect() as connection:
        connection.sendall(GET[:-2])
        status, headers, body = read_response(connection)
        assert (status, headers["content-type"]) == (408, "application/problem+json")
        assert json.loads(body)["status"] == 408
        assert is_closed(connection)


@pytest.mark.parametrize("before", [b"", GET])
def test_a_request_head_that_arrives_slowly_times_out(before: bytes) -> None:
    with run_server(header_timeout_seconds=0.3) as running, running.connect() as connection:
        connection.sendall(before)
        if before:
            assert read_response(connection)[0] == 200
        connection.sendall(b"GET / HTTP/1.1\r\nDripping: ")

        def is_aborted() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        assert eventually(is_aborted)


def test_an_idle_connection_outlives_the_header_timeout() -> None:
    with run_server(header_timeout_seconds=0.2) as running, running.connect() as connection:
        connection.sendall(GET)
        assert read_response(connection)[0] == 200
        with running.connect() as other:  # opened later, and closed because it is silent
            assert is_closed(other)
        connection.sendall(GET)
        assert read_response(connection)[0] == 200


def test_a_request_may_take_longer_than_the_header_timeout() -> None:
    with run_server(header_timeout_seconds=0.2) as running, running.connect() as connection:
        data = encoded(sample_image())
        connection.sendall(request_head(len(data), query="?map=none") + data[:-1])
        with running.connect() as other:
            assert is_closed(other)
        connection.sendall(data[-1:])
        assert read_response(connection)[0] == 200


def test_a_new_connection_evicts_one_without_a_request() -> None:
    with run_server(max_connections=16) as running, ExitStack() as stack:
        kept = stack.enter_context(running.connect())
        kept.sendall(GET)
        assert read_response(kept)[0] == 200
        for _ in range(100):
            stack.enter_context(running.connect())
        assert httpx.get(running.url + "/health/live", timeout=PATIENCE).status_code == 200
        assert running.metric("moleflow_connections") <= 16
        assert running.metric("moleflow_connections_cut_total", reason="room") >= 80
        kept.sendall(GET)  # has sent a request, so new connections are evicted first
        assert read_response(kept)[0] == 200


def test_connections_that_wait_for_a_response_are_not_evicted() -> None:
    with run_server(max_connections=16, max_batch_size=1) as running, ExitStack() as stack:
        holder = running.hold()
        data = encoded(sample_image())
        waiting = stack.enter_context(running.connect())
        waiting.sendall(request_head(len(data), query="?map=none") + data)
        assert eventually(lambda: running.metric("moleflow_queue_length") == 1)
        for _ in range(100):
            stack.enter_context(running.connect())
        running.detector.gate.set()
        assert read_response(waiting)[0] == 200
        holder.join()


def test_slow_uploads_take_no_slot() -> None:
    with run_server(queue_size=1) as running, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(running.connect()).sendall(request_head(1000) + b"x")
        assert eventually(lambda: running.metric("moleflow_uploads_in_progress") == 20)
        assert running.metric("moleflow_requests_in_progress") == 0
        assert running.predict(encoded(sample_image())).status_code == 200


def test_slow_uploads_are_evicted_for_new_connections() -> None:
    with run_server(max_connections=16) as running, ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(running.connect()).sendall(request_head(1000) + b"x")
        answer = httpx.post(
            running.url + "/predict",
            content=encoded(sample_image()),
            headers={"content-type": "image/png"},
            timeout=PATIENCE,
        )
        assert answer.status_code == 200


def test_a_slow_upload_is_aborted_long_before_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.service.api.body._WINDOW_SECONDS", 0.2)
    with run_server(upload_timeout_seconds=3600) as running, running.connect() as connection:
        connection.sendall(request_head(1000) + b"x")
        status, _, body = read_response(connection)
        assert status == 408
        assert "arrived in" in json.loads(body)["detail"]


def test_all_uploads_together_share_a_memory_budget() -> None:
    data = encoded(sample_image())
    with run_server(upload_memory=100_000) as running, running.connect() as first:
        first.sendall(request_head(200_000) + bytes(100_000 - len(data)))
        assert eventually(lambda: running.predict(data).status_code == 200)
        first.sendall(b"x")

        def is_rejected() -> bool:
            answer = running.predict(data)
            return answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1

        assert eventually(is_rejected)
        first.close()
        assert eventually(lambda: running.predict(data).status_code == 200)


def test_chunks_of_one_byte_are_rejected_and_delay_nobody() -> None:
    with run_server() as running, running.connect() as connection:
        head = request_head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        connection.sendall(head)
        longest = 0.0
        try:
            for _ in range(20):
                connection.sendall(b"1\r\nx\r\n" * 20_000)
                began = time.monotonic()
                assert running.client.get("/health/live").status_code == 200
                longest = max(longest, time.monotonic() - began)
        except OSError:
            pass  # rejected and closed
        assert eventually(lambda: running.metric("moleflow_requests_total", route="/predict", status="400") == 1)
        assert longest < 1  # parsed in one go, such a piece takes longer


def test_a_body_in_ordinary_chunks_is_read() -> None:
    data = encoded(sample_image(700, 500))
    with run_server() as running:
        chunks = (data[start : start + 1000] for start in range(0, len(data), 1000))
        answer = running.client.post("/predict", content=chunks, headers={"content-type": "image/png"})
        assert answer.status_code == 200


def test_pipelined_requests_are_answered_in_order() -> None:
    with run_server() as running, running.connect() as connection:
        connection.sendall(GET * 50 + b"GET /nothing HTTP/1.1\r\nHost: test\r\n\r\n")
        reader = connection.makefile("rb")
        statuses = []
        for _ in range(51):
            statuses.append(int(reader.readline().split()[1]))
            headers = http.client.parse_headers(reader)
            reader.read(int(headers["content-length"]))
        assert statuses == [200] * 50 + [404]


def test_requests_that_follow_a_body_at_once_do_not_count_as_its_framing() -> None:
    data = encoded(sample_image())
    upload = request_head(len(data), query="?map=none") + data
    with run_server() as running, running.connect() as connection:
        connection.sendall(upload[:-10])
        time.sleep(0.2)  # so that the rest of the body arrives together with what follows
        connection.sendall(upload[-10:] + GET * 2500)
        assert read_response(connection)[0] == 200


def test_pipelined_requests_whose_responses_are_not_read_are_disconnected() -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n"
    with run_server(send_timeout_seconds=0.5) as running, running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(OSError):
            for _ in range(1_000_000):
                connection.sendall(request * 100)
        assert running.metric("moleflow_connections_cut_total", reason="send") == 1


def test_more_idle_connections_than_descriptors_leave_the_service_reachable(
    processes: Processes,
) -> None:
    with serve_in_a_process(processes, descriptors=256) as process, ExitStack() as stack:
        url = process.line(0)
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        for _ in range(300):
            stack.enter_context(socket.create_connection(address, PATIENCE))
        for _ in range(3):
            assert httpx.get(url + "/health/live", timeout=PATIENCE).status_code == 200
        process.kill(signal.SIGTERM)
        assert len(process.finish().stderr.splitlines()) < 30


def test_running_out_of_descriptors_stops_nothing_and_does_not_flood_the_log(processes: Processes) -> None:
    take_all = """
import os, threading, time
def take_all():
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        print("none left", flush=True)
    time.sleep(0.5)
    for descriptor in taken:
        os.close(descriptor)
    print("given back", flush=True)
"""
    with serve_in_a_process(processes, descriptors=256, before=take_all, when_ready="take_all()") as process:
        url = process.line(0)
        assert process.line(1) == "none left"
        with ExitStack() as stack:
            address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
            for _ in range(50):
                stack.enter_context(socket.create_connection(address, PATIENCE))
            assert httpx.get(url + "/health/live", timeout=PATIENCE).status_code == 200
        process.kill(signal.SIGTERM)
        assert len(process.finish().stderr.splitlines()) < 30


def test_too_few_descriptors_are_an_error_with_advice() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(ConfigurationError, match=r"MOLEFLOW_MAX_CONNECTIONS.*ulimit -n.*fewer connections"):
        connection_limit(10**9, workers=1)
    assert connection_limit(None, workers=1) <= soft
