"""Concurrent requests: batches, a full queue, disconnecting clients and a failing model."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from dummy import DummyDetector
from running import Running, eventually, request_head, run_server
from sample_images import encoded, sample_image

from moleflow.model.verdict.results import Finding, Prediction
from moleflow.service.engine import pipeline

WHITE = encoded(np.full((60, 90, 3), 255, np.uint8))


def waiting(running: Running) -> float:
    return running.metric("moleflow_queue_length")


def test_requests_that_wait_together_share_one_model_call() -> None:
    with run_server(max_batch_size=8) as running, ThreadPoolExecutor(6) as pool:
        holder = running.hold()
        answers = [pool.submit(running.predict, encoded(sample_image()), map="none") for _ in range(6)]
        assert eventually(lambda: waiting(running) == 6)
        running.detector.gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 6
        holder.join()
        assert running.detector.batches == [1, 6]


def test_mixed_products_in_one_batch_get_their_own_results() -> None:
    colours = {"red": (90, 0, 0), "green": (0, 90, 0), "blue": (0, 0, 90)}
    with run_server() as running, ThreadPoolExecutor(3) as pool:
        holder = running.hold()
        answers = {
            name: pool.submit(running.predict, encoded(np.full((40, 50, 3), colour, np.uint8)), map="none")
            for name, colour in colours.items()
        }
        assert eventually(lambda: waiting(running) == 3)
        running.detector.gate.set()
        assert {name: answer.result().json()["task"]["name"] for name, answer in answers.items()} == {
            name: name for name in colours
        }
        holder.join()


def test_a_full_queue_rejects_at_once_with_retry_after() -> None:
    with run_server(queue_size=1) as running:
        holder = running.hold()
        response = running.predict(encoded(sample_image()))
        assert response.status_code == 429
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["retry-after"]) >= 1
        running.detector.gate.set()
        holder.join()
        assert eventually(lambda: running.predict(encoded(sample_image())).status_code == 200)


def test_a_request_to_a_full_queue_is_rejected_before_its_body_is_read() -> None:
    with run_server(queue_size=1) as running:
        holder = running.hold()
        with running.connect() as connection:
            connection.sendall(request_head(1000))  # but no body
            assert connection.recv(100).startswith(b"HTTP/1.1 429 ")
        running.detector.gate.set()
        holder.join()


def test_a_client_that_disconnects_takes_no_slot_in_a_batch() -> None:
    with run_server() as running:
        holder = running.hold()
        data = encoded(sample_image())
        with running.connect() as connection:
            connection.sendall(request_head(len(data)) + data)
            assert eventually(lambda: waiting(running) == 1)
        assert eventually(lambda: waiting(running) == 0)
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 1)
        running.detector.gate.set()
        holder.join()
        assert running.detector.batches == [1]
        assert running.metric("moleflow_requests_total", route="/predict", status="499") == 1


def test_a_client_that_disconnects_while_uploading_is_dropped() -> None:
    with run_server(queue_size=1) as running:
        with running.connect() as connection:
            connection.sendall(request_head(1000) + b"x")
            assert eventually(lambda: running.metric("moleflow_uploads_in_progress") == 1)
        assert eventually(lambda: running.metric("moleflow_uploads_in_progress") == 0)
        assert running.predict(encoded(sample_image())).status_code == 200


def test_a_failing_model_yields_a_500_without_traceback_and_the_service_continues() -> None:
    with run_server() as running:
        response = running.predict(WHITE)
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["title"] == "The service failed"
        assert "Traceback" not in response.text
        assert "white" not in response.text
        assert running.predict(encoded(sample_image())).status_code == 200
        assert running.metric("moleflow_inference_failures_total") == 1


def test_an_unknown_product_does_not_affect_other_requests() -> None:
    with run_server() as running, ThreadPoolExecutor(2) as pool:
        holder = running.hold()
        fine = pool.submit(running.predict, encoded(sample_image()))
        wrong = pool.submit(running.predict, encoded(sample_image()), task="bottle")
        assert wrong.result().status_code == 404  # while the model is busy, so without it
        assert eventually(lambda: waiting(running) == 1)
        running.detector.gate.set()
        assert fine.result().status_code == 200
        holder.join()


def test_a_score_that_is_not_a_number_is_a_failure_and_not_a_verdict() -> None:
    class Broken(DummyDetector):
        def _judge(self, image: np.ndarray, task: str | None) -> Finding:
            return replace(cast(Prediction, super()._judge(image, task)), score=float("nan"))

    with run_server(Broken()) as running:
        for accept in ("application/json", "image/png", "application/x-npy"):
            assert running.predict(encoded(sample_image()), {"accept": accept}).status_code == 500


@pytest.mark.parametrize(("owner", "stage"), [(pipeline.DecoderPool, "decode"), (pipeline, "render")])
def test_other_requests_are_served_while_an_image_is_decoded_or_encoded(
    owner: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, may_go_on = threading.Event(), threading.Event()
    real = getattr(owner, stage)

    def slow(*arguments: Any, **options: Any) -> Any:
        entered.set()
        assert may_go_on.wait(120)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, stage, slow)
    with run_server() as running, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.predict, encoded(sample_image()))
        assert entered.wait(120)
        assert running.client.get("/health/live").status_code == 200
        assert not answer.done()
        may_go_on.set()
        assert answer.result().status_code == 200


def test_the_map_of_a_large_image_arrives_completely() -> None:
    with run_server() as running:
        found = running.predict(encoded(sample_image(1500, 1000))).json()["anomaly_map"]
        assert found["shape"] == [1000, 1500]
        assert base64.b64decode(found["data"], validate=True).endswith(b"IEND\xaeB`\x82")
