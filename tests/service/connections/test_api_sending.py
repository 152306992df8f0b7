"""Responses are sent no faster than clients read them, and hold their resources until then."""

import io
import socket
import time
from contextlib import ExitStack

import numpy as np
import pytest
from running import PATIENCE, Running, eventually, read_response, request_head, run_server
from sample_images import encoded, sample_image

LARGE = encoded(sample_image(1500, 1600), "JPEG")
"""Its map takes 9.6 MB as float32, far more than socket buffers."""

MAP = b"Accept: application/x-npy\r\n"


def ask(running: Running, *, query: str = "", headers: bytes = MAP, buffer: int = 16 * 1024) -> socket.socket:
    """A connection that requests a large map and reads nothing; its receive buffer has about ``buffer`` bytes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", running.port))
    connection.sendall(request_head(len(LARGE), "image/jpeg", query).replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n"))
    connection.sendall(LARGE)
    return connection


def held(running: Running) -> float:
    """Occupied slots."""
    return running.metric("moleflow_requests_in_progress")


def prediction_count(running: Running) -> float:
    return running.metric("moleflow_encode_seconds_count")


def test_a_slot_is_occupied_until_the_response_is_sent() -> None:
    with run_server(queue_size=1) as running, ask(running) as connection:
        assert eventually(lambda: prediction_count(running) == 1)
        assert running.predict(encoded(sample_image())).status_code == 429
        status, _, body = read_response(connection)
        assert status == 200
        assert np.load(io.BytesIO(body)).shape == (1600, 1500)
        assert eventually(lambda: held(running) == 0)
        assert running.predict(encoded(sample_image())).status_code == 200


def test_a_client_that_never_reads_is_disconnected_and_frees_its_slot() -> None:
    with run_server(queue_size=1, send_timeout_seconds=0.5) as running, ask(running) as connection:
        assert eventually(lambda: prediction_count(running) == 1)
        assert eventually(lambda: held(running) == 0)
        assert running.metric("moleflow_connections_cut_total", reason="send") == 1
        assert running.predict(encoded(sample_image())).status_code == 200
        with pytest.raises(OSError):  # the response is incomplete
            while connection.recv(1_000_000):
                pass
            raise ConnectionError


def test_a_client_that_disconnects_without_reading_frees_its_slot() -> None:
    with run_server(queue_size=1) as running:
        with ask(running):
            assert eventually(lambda: prediction_count(running) == 1)
            assert held(running) == 1
        assert eventually(lambda: held(running) == 0)


def test_a_slow_reader_gets_its_whole_response() -> None:
    with run_server(send_timeout_seconds=0.5) as running, ask(running, buffer=100_000) as connection:
        began, received = time.monotonic(), 0
        while time.monotonic() - began < 1.5:  # three times the send timeout
            received += len(connection.recv(20_000))
            time.sleep(0.01)
        assert received < 9_600_000
        while received < 9_600_000:
            piece = connection.recv(1_000_000)
            assert piece
            received += len(piece)


def test_a_reader_below_the_minimum_rate_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.service.connections.connection._MIN_SEND_RATE", 50_000_000)
    with run_server(send_timeout_seconds=0.5) as running, ask(running) as connection:
        with pytest.raises(OSError):
            while connection.recv(20_000):
                time.sleep(0.01)
            raise ConnectionError
        assert running.metric("moleflow_connections_cut_total", reason="send") == 1


def test_large_responses_wait_for_memory_and_small_ones_do_not() -> None:
    with run_server(answer_memory=15_000_000) as running, ExitStack() as stack:
        stack.enter_context(ask(running))
        assert eventually(lambda: prediction_count(running) == 1)
        second = stack.enter_context(ask(running))
        assert eventually(lambda: held(running) == 2)
        assert running.predict(encoded(sample_image())).status_code == 200
        third = stack.enter_context(ask(running, query="?map_size=model"))
        assert read_response(third)[0] == 200
        assert prediction_count(running) == 3  # all but the second
        stack.close()
        assert eventually(lambda: held(running) == 0)
        assert second.fileno() == -1


def test_a_response_larger_than_the_budget_is_made_when_nothing_else_is_in_memory() -> None:
    with run_server(answer_memory=1000) as running, ask(running) as connection:
        assert read_response(connection)[0] == 200


def test_a_float16_map_halves_the_response() -> None:
    with run_server() as running:
        accept = {"accept": "application/x-npy"}
        whole = running.predict(encoded(sample_image(300, 200)), accept)
        half = running.predict(encoded(sample_image(300, 200)), accept, map="npy16")
        assert len(half.content) - 128 == (len(whole.content) - 128) / 2
        assert np.allclose(np.load(io.BytesIO(half.content)), np.load(io.BytesIO(whole.content)), rtol=1 / 2000)
