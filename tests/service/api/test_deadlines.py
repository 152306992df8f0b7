"""What is expired or abandoned leaves every queue before it takes a place in a batch."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from running import Running, eventually, request_head, run_server
from sample_images import encoded, sample_image

GOOD = encoded(sample_image())
SOON = {"X-Request-Timeout-Ms": "150"}


def form(count: int) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"{number}.png", GOOD, "image/png")) for number in range(count)]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "", "3600001", "1" * 5000, "½", "1, 2"])
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_an_invalid_header_is_refused(service: Running, path: str, value: str) -> None:
    headers = {b"X-Request-Timeout-Ms": value.encode(), b"Content-Type": b"image/png"}
    response = service.client.post(path, content=GOOD, headers=headers)
    assert response.status_code == 400
    assert "from 1 to 3,600,000" in response.json()["detail"]


def test_a_header_given_twice_is_refused(service: Running) -> None:
    headers = [("X-Request-Timeout-Ms", "1000"), ("X-Request-Timeout-Ms", "1000"), ("Content-Type", "image/png")]
    assert service.client.post("/predict", content=GOOD, headers=headers).status_code == 400


def test_an_answer_within_its_deadline_is_as_without_one(service: Running) -> None:
    assert service.predict(GOOD, {"X-Request-Timeout-Ms": "0060000"}).json()["verdict"] == "good"


@pytest.mark.parametrize("settings", [{}, {"request_timeout_seconds": 0.15}])
def test_an_expired_request_gets_a_504_and_no_place_in_a_batch(settings: dict[str, Any]) -> None:
    with run_server(**settings) as running:
        running.detector.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(running.predict, GOOD, {"X-Request-Timeout-Ms": "60000"})
            assert running.detector.entered.wait(120)
            response = running.predict(GOOD, {} if settings else SOON)
            running.detector.gate.set()
            assert first.result().status_code == 200  # the header takes the setting's place
        assert (response.status_code, response.json()["type"]) == (504, "urn:moleflow:problem:deadline-passed")
        assert "within 0.15 s" in response.json()["detail"]
        assert running.metric("moleflow_given_up_total", reason="expired") == 1
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 0)
        assert running.detector.batches == [1]


def test_a_deadline_includes_the_upload(service: Running) -> None:
    with service.connect() as connection:
        head = request_head(1000).replace(b"Host: test", b"Host: test\r\nX-Request-Timeout-Ms: 50")
        connection.sendall(head)  # but no body
        assert connection.recv(100).startswith(b"HTTP/1.1 504 ")


def test_late_images_of_a_large_request_get_a_504_each() -> None:
    with run_server(queue_size=4) as running:
        holder = running.hold()
        started = time.monotonic()
        response = running.client.post("/predict/batch", files=form(5), headers=SOON)
        assert time.monotonic() - started < 60
        running.detector.gate.set()
        holder.join()
        errors = [each["error"] for each in response.json()["results"]]
        assert [error["status"] for error in errors] == [504] * 5
        assert running.metric("moleflow_given_up_total", reason="expired") == 5
        assert running.detector.batches == [1]


def test_two_hundred_abandoned_requests_cost_no_place_in_a_batch() -> None:
    with run_server(queue_size=256) as running:
        holder = running.hold()
        with ExitStack() as connections:
            for _ in range(200):
                connection = connections.enter_context(running.connect())
                connection.sendall(request_head(len(GOOD), query="?map=none") + GOOD)
            assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 201)
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 1)
        assert running.metric("moleflow_given_up_total", reason="abandoned") == 200
        running.detector.gate.set()
        holder.join()
        assert running.predict(GOOD).status_code == 200
        assert running.detector.batches == [1, 1]
