"""Many images in one request: their answers, limits, and what they leave to single images."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from dummy import DummyDetector
from running import Running, eventually, run_server
from sample_images import encoded, sample_image

from moleflow.model.verdict.results import Failure, Finding
from moleflow.service.api.options import BatchOptions, PredictOptions
from moleflow.service.responses.schemas import BatchResponse

GOOD, SPOT = encoded(sample_image()), encoded(sample_image(spot=True))
WHITE = encoded(np.full((60, 90, 3), 255, np.uint8))


def send(running: Running, *images: bytes, fields: dict[str, str] | None = None, **query: Any) -> httpx.Response:
    files = [("file", (f"{number}.png", data, "image/png")) for number, data in enumerate(images)]
    return running.client.post("/predict/batch", files=files, data=fields or {}, params=query)


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    BatchResponse.model_validate_json(response.content)
    return response.json()["results"]


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A service with low limits."""
    with run_server(max_request_images=3, max_request_bytes=20_000, max_upload_bytes=8_000) as running:
        yield running


def test_each_image_gets_the_answer_that_it_would_get_alone(service: Running) -> None:
    found = results(send(service, GOOD, SPOT))
    assert [each["file"] for each in found] == ["0.png", "1.png"]
    for image, each in zip((GOOD, SPOT), found, strict=True):
        alone = service.predict(image, map="none").json()
        assert each["error"] is None
        for answer in (alone, each["prediction"]):
            del answer["timing_ms"], answer["id"]
        assert each["prediction"] == alone


def test_a_bad_image_does_not_affect_the_others(service: Running) -> None:
    bad, fine, failing = results(send(service, b"no image", GOOD, WHITE))
    assert bad["prediction"] is None
    assert bad["error"]["status"] == 415
    assert bad["error"]["type"] == "urn:moleflow:problem:unsupported-image"
    assert fine["prediction"]["verdict"] == "good"
    assert failing["error"]["status"] == 500


def test_options_apply_to_all_images_and_are_those_of_single_ones(service: Running) -> None:
    assert BatchOptions.model_fields.keys() == PredictOptions.model_fields.keys()
    for found in (
        results(send(service, GOOD, SPOT, task="blue", map="npy", map_size="model")),
        results(send(service, GOOD, SPOT, fields={"task": "blue", "map": "npy", "map_size": "model"})),
    ):
        assert [each["prediction"]["task"]["name"] for each in found] == ["blue", "blue"]
        assert all(each["prediction"]["anomaly_map"]["shape"] == [64, 64] for each in found)


def test_maps_of_the_images_size_may_exceed_the_budget_together() -> None:
    large = encoded(sample_image(1000, 800))
    with run_server(answer_memory=4_000_000) as running:
        found = results(send(running, large, large, large, map="npy"))
    assert [each["prediction"]["anomaly_map"]["shape"] for each in found] == [[800, 1000]] * 3


@pytest.mark.parametrize(
    ("images", "query", "status", "hint"),
    [
        ((GOOD,) * 4, {}, 422, "more than 3 images"),
        ((GOOD,), {"task": "bottle"}, 404, "red, green, blue"),
        ((GOOD,), {"map": "jpeg"}, 422, "'map' is 'jpeg'"),
        ((), {}, 415, "multipart form"),
        ((b"",), {}, 422, "is empty"),
    ],
)
def test_an_invalid_request_is_refused_as_a_whole(
    small: Running, images: tuple[bytes, ...], query: dict[str, Any], status: int, hint: str
) -> None:
    response = send(small, *images, **query)
    assert response.status_code == status
    assert hint in response.json()["detail"]


def test_sizes_are_limited_for_each_image_and_for_all(small: Running) -> None:
    too_large, fine = results(send(small, b"x" * 8_001, GOOD))
    assert too_large["error"]["status"] == 413
    assert "8,000 bytes" in too_large["error"]["detail"]
    assert fine["error"] is None
    response = small.client.post("/predict/batch", content=b"x", headers={"content-type": "image/png"})
    assert response.status_code == 415
    many = small.client.post("/predict/batch", files=[("file", ("a", b"x" * 120_000))])
    assert many.status_code == 413
    assert "20,000 bytes in all" in many.json()["detail"]


def test_only_json_is_offered(service: Running) -> None:
    files = [("file", ("a.png", GOOD))]
    response = service.client.post("/predict/batch", files=files, headers={"accept": "image/png"})
    assert response.status_code == 406


def test_a_single_image_overtakes_the_rest_of_a_large_request() -> None:
    class Recording(DummyDetector):
        def predict(
            self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None
        ) -> list[Finding | Failure]:
            order.extend(tasks or ())
            return super().predict(images, tasks)

    order: list[str | None] = []
    with run_server(Recording(), queue_size=8, max_batch_size=2) as running, ThreadPoolExecutor(8) as pool:
        running.detector.gate.clear()
        many = pool.submit(send, running, *[GOOD] * 30)
        assert running.detector.entered.wait(120)
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 4)
        singles = [pool.submit(running.predict, SPOT, map="none", task="blue") for _ in range(4)]
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 8)
        assert running.predict(GOOD).status_code == 429
        running.detector.gate.set()
        assert [each.result().status_code for each in singles] == [200] * 4
        assert len(results(many.result())) == 30
    assert order == [None] * 4 + ["blue"] * 4 + [None] * 26


def test_a_full_queue_refuses_the_request_before_its_body_is_read() -> None:
    with run_server(queue_size=1) as running:
        holder = running.hold()
        head = "POST /predict/batch HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        with running.connect() as connection:
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())  # but no body
            assert connection.recv(100).startswith(b"HTTP/1.1 429 ")
        running.detector.gate.set()
        holder.join()


def test_uploads_of_many_images_leave_half_of_the_memory_to_others() -> None:
    with run_server(upload_memory=40_000) as running:
        assert send(running, b"x" * 15_000, b"x" * 15_000).status_code == 429
        assert running.predict(b"x" * 30_000).status_code == 415


def test_answers_are_sent_while_later_images_are_predicted() -> None:
    with run_server(max_batch_size=1, queue_size=2) as running, ThreadPoolExecutor(1) as pool:
        seen = threading.Event()
        real = running.detector.predict

        def predict(images: Any, tasks: Any = None) -> Any:
            if len(running.detector.batches) == 2:
                assert seen.wait(120)
            return real(images, tasks)

        running.detector.predict = predict

        def read() -> bytes:
            body = b""
            files = [("file", (f"{number}.png", GOOD)) for number in range(4)]
            with running.client.stream("POST", "/predict/batch", files=files) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if body.count(b'"file"') >= 2:
                        seen.set()
            return body

        assert len(json.loads(pool.submit(read).result(120))["results"]) == 4


def test_a_client_that_disconnects_frees_its_slots() -> None:
    with run_server(queue_size=8, max_batch_size=1) as running:
        holder = running.hold()
        body = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + GOOD + b"\r\n" for _ in range(6)
        )
        body += b"--x--\r\n"
        head = "POST /predict/batch HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        with running.connect() as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 3)
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 1)
        running.detector.gate.set()
        holder.join()
        assert running.detector.batches == [1]
