"""The Open Inference Protocol: what it says, limits, and errors in its own form."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from dummy import DummyDetector
from running import Running, eventually, run_server
from sample_images import encoded, sample_image

GOOD, SPOT = encoded(sample_image()), encoded(sample_image(spot=True))
BLACK = encoded(np.zeros((60, 90, 3), np.uint8))
INFER = "/v2/models/moleflow/infer"
OUTPUTS = ("verdict", "task", "score", "p_value", "threshold", "novelty_score", "id", "map")


def image(*files: bytes, **changes: Any) -> dict[str, Any]:
    """A BYTES tensor of files in JSON."""
    data = [base64.b64encode(each).decode() for each in files]
    return {"name": "image", "shape": [len(files)], "datatype": "BYTES", "data": data} | changes


def pixels(values: Any, shape: list[int], **changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": shape, "datatype": "UINT8", "data": values} | changes


def ask(running: Running, *inputs: dict[str, Any], model: str = "moleflow", **others: Any) -> httpx.Response:
    headers = others.pop("headers", {})
    return running.client.post(f"/v2/models/{model}/infer", json={"inputs": inputs} | others, headers=headers)


def tensors(response: httpx.Response) -> dict[str, Any]:
    """The outputs in JSON by name."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def error(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.json().keys() == {"error"}
    return response.json()["error"]


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A service with low limits."""
    with run_server(max_request_images=3, max_request_bytes=200_000, max_upload_bytes=60_000) as running:
        yield running


def test_server_and_models_describe_themselves(service: Running) -> None:
    assert service.client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for name in ("moleflow", "red", "green", "blue"):
        described = service.client.get(f"/v2/models/{name}").json()
        assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        assert tuple(output["name"] for output in described["outputs"]) == OUTPUTS
        assert service.client.get(f"/v2/models/{name}/ready").status_code == 200
    assert service.client.get("/v2/health/live").json() == {"live": True}
    assert service.client.get("/v2/health/ready").json() == {"ready": True}


def test_an_image_gets_the_answer_that_predict_gives(service: Running) -> None:
    alone = service.predict(SPOT, map="npy", map_size="model").json()
    response = ask(service, image(SPOT), id="request-7")
    found = tensors(response)
    assert (response.json()["model_name"], response.json()["id"]) == ("moleflow", "request-7")
    assert (found["verdict"], found["task"]) == ([alone["verdict"]], [alone["task"]["name"]])
    for name in ("score", "p_value", "threshold"):
        assert found[name] == [np.float32(alone[name])]
    stored = np.frombuffer(base64.b64decode(alone["anomaly_map"]["data"])[-64 * 64 * 4 :], np.float32)
    assert np.array_equal(np.array(found["map"], np.float32), stored)
    assert found["id"] == [response.headers["x-request-id"]]


def test_pixels_get_the_answer_of_their_file(service: Running) -> None:
    shown = sample_image(spot=True)
    shape = list(shown.shape)
    expected = tensors(ask(service, image(SPOT, SPOT)))
    for values, given in (
        ([shown.tolist()] * 2, [2, *shape]),
        (np.stack([shown, shown]).ravel().tolist(), [2, *shape]),
    ):
        assert {**tensors(ask(service, pixels(values, given))), "id": 0} == {**expected, "id": 0}
    one = ask(service, pixels(shown.tolist(), shape))
    assert tensors(one)["score"] == expected["score"][:1]


def test_a_product_is_a_model_that_skips_routing(service: Running) -> None:
    assert tensors(ask(service, image(GOOD, BLACK), model="blue"))["task"] == ["blue", "blue"]


def test_an_unknown_product_has_no_numbers(service: Running) -> None:
    found = tensors(ask(service, image(BLACK, SPOT)))
    assert (found["verdict"], found["task"]) == (["unknown_product", "anomalous"], ["", "green"])
    assert found["score"][0] is found["map"][0] is None
    assert None not in found["map"][64 * 64 :]


def test_only_wanted_outputs_are_sent_and_parameters_apply(service: Running) -> None:
    response = ask(service, image(SPOT), outputs=[{"name": "threshold"}], parameters={"false_alarm_rate": 0.4})
    alone = service.predict(SPOT, false_alarm_rate="0.4").json()
    assert tensors(response) == {"threshold": [np.float32(alone["threshold"])]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "no inference request"),
        (b"[" * 100_000, "no inference request"),
        (b'{"inputs": []}', "missing"),
        ({"inputs": [image(GOOD) | {"name": "x"}]}, "The inputs are 'x'"),
        ({"inputs": [image(GOOD), image(GOOD)]}, "there must be one"),
        ({"inputs": [image(GOOD, shape=[2])]}, "1 elements, but the shape is [2]"),
        ({"inputs": [image(GOOD, shape=[1, 2])]}, "[N] or [N, 1]"),
        ({"inputs": [image(GOOD, shape=[0])]}, "greater than or equal to 1"),
        ({"inputs": [image(GOOD, shape=[10**4000])]}, "no inference request"),
        ({"inputs": [image(GOOD, data=["no base64!"])]}, "base64"),
        ({"inputs": [image(GOOD, data=[1])]}, "base64"),
        ({"inputs": [image(b"")]}, "empty"),
        ({"inputs": [image(GOOD, datatype="FP32")]}, "use BYTES for image files, or UINT8"),
        ({"inputs": [image(GOOD, parameters={"binary_data_size": 3})]}, "either data or"),
        ({"inputs": [image(GOOD, data=None)]}, "either data or"),
        ({"inputs": [image(GOOD, data=None, parameters={"binary_data_size": 3})]}, "0 bytes follow"),
        ({"inputs": [image(GOOD, data=None, parameters={"shared_memory_region": "a"})]}, "shared_memory_region"),
        ({"inputs": [pixels([1, 2, 3], [1, 1, 4])]}, "[height, width, 3]"),
        ({"inputs": [pixels([1, 2], [1, 1, 3])]}, "2 values, but the shape is [1, 1, 3]"),
        ({"inputs": [pixels([1, 2, 256], [1, 1, 3])]}, "from 0 to 255"),
        ({"inputs": [pixels([1, 2, 0.5], [1, 1, 3])]}, "from 0 to 255"),
        ({"inputs": [pixels([[1], [2, 3]], [1, 1, 3])]}, "from 0 to 255"),
        ({"inputs": [pixels([], [1, 1, 3])]}, "from 0 to 255"),
        ({"inputs": [image(GOOD)], "outputs": [{"name": "mask"}]}, "no output 'mask'"),
        ({"inputs": [image(GOOD)], "outputs": [{"name": "map"}, {"name": "map"}]}, "twice"),
        ({"inputs": [image(GOOD)], "parameters": {"false_alarm_rate": 2}}, "less than 1"),
        ({"inputs": [image(GOOD)], "parameters": {"timeout": 2}}, "timeout"),
    ],
)
def test_a_malformed_request_is_an_error_that_says_why(service: Running, body: Any, says: str) -> None:
    response = service.client.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body))
    assert response.status_code == 400
    assert says in error(response)


@pytest.mark.parametrize("length", ["x", "-1", "100000", "9" * 5000, ""])
def test_a_wrong_length_of_the_json_is_an_error(service: Running, length: str) -> None:
    response = service.client.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert response.status_code == 400
    error(response)


@pytest.mark.parametrize(
    ("binary", "says"),
    [
        (b"\2\0\0\0ab\1\0\0", "ends inside"),
        (b"\2\0\0\0ab\1\0\0\0", "ends inside"),
        (b"\2\0\0\0ab\1\0\0\0cd", "1 bytes after the last of 2"),
        (b"\2\0\0\0ab\xff\xff\xff\xff", "ends inside"),
    ],
)
def test_wrong_binary_data_is_an_error(service: Running, binary: bytes, says: str) -> None:
    given = image(b"", b"", data=None, parameters={"binary_data_size": len(binary)})
    text = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    response = service.client.post(INFER, content=text + binary, headers=headers)
    assert response.status_code == 400
    assert says in error(response)


def test_limits_are_those_of_uploads(small: Running) -> None:
    assert "4 images" in error(ask(small, image(*[GOOD] * 4)))
    side = [1, 1, 60_001, 3]
    for response in (
        ask(small, pixels([1], side)),
        ask(small, image(b"x" * 60_001)),
        small.client.post(INFER, content=b"x" * 300_000),
    ):
        assert response.status_code == 413
        assert "limit" in error(response) or "more than" in error(response)
    million = b'{"inputs": [{"name": "image", "shape": [1], "datatype": "UINT8", "data": [' + b"1," * 1_000_001
    with run_server() as running:
        assert "1,000,000 values" in error(running.client.post(INFER, content=million))


def test_the_image_that_fails_is_named(service: Running) -> None:
    response = ask(service, image(GOOD, b"no image", GOOD))
    assert response.status_code == 415
    assert error(response).startswith("Image 2 of 3: ")
    assert not error(ask(service, image(b"no image"))).startswith("Image 1")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/bottle", 404),
        ("GET", "/v2/models/bottle/ready", 404),
        ("POST", "/v2/models/bottle/infer", 404),
        ("GET", "/v2/models/moleflow/config", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
    ],
)
def test_errors_have_the_protocols_form(service: Running, method: str, path: str, status: int) -> None:
    response = service.client.request(method, path)
    assert response.status_code == status
    assert error(response)


def test_other_paths_keep_problem_documents(service: Running) -> None:
    assert service.client.get("/v2x").headers["content-type"] == "application/problem+json"


def test_a_service_that_is_not_ready_says_so() -> None:
    with run_server(max_batch_size=1) as running:
        running.server._engine.announce_stop()
        for path in ("/v2/health/ready", "/v2/models/moleflow/ready"):
            response = running.client.get(path)
            assert response.status_code == 503
            assert "about to stop" in error(response)


def test_keys_hold_and_probes_need_none(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"line-1 predict {'k' * 20}\n")
    with run_server(api_keys=tmp_path / "keys") as running:
        assert running.client.get("/v2/health/ready").status_code == 200
        refused = ask(running, image(GOOD))
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "API key" in error(refused)
        assert ask(running, image(GOOD), headers={"X-API-Key": "k" * 20}).status_code == 200


def test_admission_and_deadlines_hold() -> None:
    with run_server(DummyDetector(), queue_size=1) as running:
        holder = running.hold()
        full = ask(running, image(GOOD))
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        assert "queue is full" in error(full)
        running.detector.gate.set()
        holder.join()
    with run_server(queue_size=8) as running:
        holder = running.hold()
        for files in ([GOOD], [GOOD] * 3):
            late = ask(running, image(*files), headers={"X-Request-Timeout-Ms": "150"})
            assert late.status_code == 504
            assert "within 0.15 s" in error(late)
        running.detector.gate.set()
        holder.join()
        assert eventually(lambda: running.metric("moleflow_requests_in_progress") == 0)
        assert running.detector.batches == [1]
        assert running.metric("moleflow_requests_total", route="/v2/models/{name}/infer", status="504") == 2
        assert running.metric("moleflow_given_up_total", reason="expired") == 2
