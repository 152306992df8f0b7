"""A stopping service announces it, completes accepted requests, and stops in time whatever clients do."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from running import PATIENCE, Running, eventually, read_response, request_head, run_server
from sample_images import encoded, sample_image

LARGE = encoded(sample_image(1500, 1600), "JPEG")
GET = b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"


def terminate(running: Running) -> None:
    running.server.handle_exit(signal.SIGTERM, None)


def refuses_connections(running: Running) -> bool:
    try:
        running.connect().close()
    except OSError:
        return True
    return False


def test_a_lame_duck_is_not_ready_but_accepts_connections_and_images() -> None:
    with run_server(lame_duck_seconds=600) as running:
        terminate(running)
        assert eventually(lambda: running.client.get("/health/ready").status_code == 503)
        assert running.metric("moleflow_ready") == 0
        for _ in range(2):
            headers = {"content-type": "image/png"}
            answer = httpx.post(
                running.url + "/predict", content=encoded(sample_image()), headers=headers, timeout=PATIENCE
            )
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
        assert running.client.get("/health/live").status_code == 200
        running.server.handle_exit(signal.SIGTERM, None)  # a second signal ends the phase
        assert eventually(lambda: refuses_connections(running))


def test_the_lame_duck_phase_ends_by_itself() -> None:
    with run_server(lame_duck_seconds=0.3) as running:
        terminate(running)
        assert eventually(lambda: refuses_connections(running))


def test_ctrl_c_skips_the_lame_duck_phase() -> None:
    with run_server(lame_duck_seconds=600) as running:
        running.server.handle_exit(signal.SIGINT, None)
        assert eventually(lambda: refuses_connections(running))


def test_a_stopping_service_asks_clients_to_close_their_connections() -> None:
    with run_server(max_batch_size=1) as running, running.connect() as connection, ThreadPoolExecutor(1) as pool:
        holder = running.hold()
        data = encoded(sample_image())
        connection.sendall(request_head(len(data), query="?map=none") + data)
        assert eventually(lambda: running.metric("moleflow_queue_length") == 1)
        running.server.should_exit = True
        assert eventually(lambda: refuses_connections(running))
        answer = pool.submit(read_response, connection)
        running.detector.gate.set()
        status, headers, _ = answer.result()
        assert (status, headers["connection"]) == (200, "close")
        holder.join()


def idle(running: Running) -> bytes:
    return b""


def incomplete_head(running: Running) -> bytes:
    return GET[:-2]


def incomplete_upload(running: Running) -> bytes:
    return request_head(1000) + b"x"


def unread_response(running: Running) -> bytes:
    head = request_head(len(LARGE), "image/jpeg").replace(b"\r\n\r\n", b"\r\nAccept: application/x-npy\r\n\r\n")
    return head + LARGE


def rejected_upload(running: Running) -> bytes:
    return request_head(10**12) + bytes(1000)


@pytest.mark.parametrize("client", [idle, incomplete_head, incomplete_upload, unread_response, rejected_upload])
def test_no_client_can_delay_the_shutdown(client: Callable[[Running], bytes]) -> None:
    with run_server(shutdown_timeout_seconds=1) as running, running.connect() as connection:
        connection.sendall(client(running))
        if client is unread_response:
            assert eventually(lambda: running.metric("moleflow_encode_seconds_count") == 1)
        running.client.close()
        began = time.monotonic()
        running.server.should_exit = True
        running.thread.join(PATIENCE)
        assert time.monotonic() - began < 15  # the timeout is a second; the clients above would stay for ever
