"""Answers go out no faster than they are read, and what they cost is held until they are sent."""

import io
import socket
import time
from contextlib import ExitStack

import numpy as np
import pytest
from rgb_images import encoded, rgb_image
from running import PATIENCE, Running, eventually, read_answer, request_head, run_server

LARGE = encoded(rgb_image(1500, 1600), "JPEG")
"""Its map takes 9.6 MB as float32: far more than the system's buffers between two processes."""

MAP = b"Accept: application/x-npy\r\n"


def ask(running: Running, *, query: str = "", headers: bytes = MAP, buffer: int = 16 * 1024) -> socket.socket:
    """A connection that has asked for a large map, and reads nothing; its system takes about ``buffer`` bytes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", running.port))
    connection.sendall(request_head(len(LARGE), "image/jpeg", query).replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n"))
    connection.sendall(LARGE)
    return connection


def held(running: Running) -> float:
    """Places that are taken."""
    return running.metric("moleflow_requests_in_progress")


def judged(running: Running) -> float:
    return running.metric("moleflow_encode_seconds_count")


def test_a_place_is_held_until_the_answer_is_sent() -> None:
    with run_server(queue_size=1) as running, ask(running) as connection:
        assert eventually(lambda: judged(running) == 1)
        assert running.predict(encoded(rgb_image())).status_code == 429
        status, _, body = read_answer(connection)
        assert status == 200
        assert np.load(io.BytesIO(body)).shape == (1600, 1500)
        assert eventually(lambda: held(running) == 0)
        assert running.predict(encoded(rgb_image())).status_code == 200


def test_a_client_that_never_reads_is_cut_and_its_place_free_again() -> None:
    with run_server(queue_size=1, send_timeout_seconds=0.5) as running, ask(running) as connection:
        assert eventually(lambda: judged(running) == 1)
        assert eventually(lambda: held(running) == 0)
        assert running.metric("moleflow_connections_cut_total", reason="send") == 1
        assert running.predict(encoded(rgb_image())).status_code == 200
        with pytest.raises(OSError):  # the answer is not whole, and says so
            while connection.recv(1_000_000):
                pass
            raise ConnectionError


def test_a_client_that_leaves_its_answer_unread_frees_its_place() -> None:
    with run_server(queue_size=1) as running:
        with ask(running):
            assert eventually(lambda: judged(running) == 1)
            assert held(running) == 1
        assert eventually(lambda: held(running) == 0)


def test_a_slow_reader_gets_all_of_its_answer() -> None:
    with run_server(send_timeout_seconds=0.5) as running, ask(running, buffer=100_000) as connection:
        began, received = time.monotonic(), 0
        while time.monotonic() - began < 1.5:  # three times as long as it may take nothing
            received += len(connection.recv(20_000))
            time.sleep(0.01)
        assert received < 9_600_000
        while received < 9_600_000:
            piece = connection.recv(1_000_000)
            assert piece
            received += len(piece)


def test_a_reader_that_is_too_slow_on_the_whole_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.service.connections.connection._SLOWEST_ANSWER", 50_000_000)
    with run_server(send_timeout_seconds=0.5) as running, ask(running) as connection:
        with pytest.raises(OSError):
            while connection.recv(20_000):
                time.sleep(0.01)
            raise ConnectionError
        assert running.metric("moleflow_connections_cut_total", reason="send") == 1


def test_large_answers_wait_for_memory_and_small_ones_do_not() -> None:
    with run_server(answer_memory=15_000_000) as running, ExitStack() as stack:
        stack.enter_context(ask(running))
        assert eventually(lambda: judged(running) == 1)
        second = stack.enter_context(ask(running))
        assert eventually(lambda: held(running) == 2)
        assert running.predict(encoded(rgb_image())).status_code == 200
        third = stack.enter_context(ask(running, query="?map_size=model"))
        assert read_answer(third)[0] == 200
        assert judged(running) == 3  # all but the second
        stack.close()
        assert eventually(lambda: held(running) == 0)
        assert second.fileno() == -1


def test_an_answer_of_more_than_all_the_memory_is_made_when_nothing_else_is_held() -> None:
    with run_server(answer_memory=1000) as running, ask(running) as connection:
        assert read_answer(connection)[0] == 200


def test_a_half_map_of_an_answer_is_half_as_large() -> None:
    with run_server() as running:
        accept = {"accept": "application/x-npy"}
        whole = running.predict(encoded(rgb_image(300, 200)), accept)
        half = running.predict(encoded(rgb_image(300, 200)), accept, map="npy16")
        assert len(half.content) - 128 == (len(whole.content) - 128) / 2
        assert np.allclose(np.load(io.BytesIO(half.content)), np.load(io.BytesIO(whole.content)), rtol=1 / 2000)
