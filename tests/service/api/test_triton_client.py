"""The service answers a client that was written for another server of the protocol."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from running import Running
from sample_images import encoded, sample_image

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

GOOD, SPOT = sample_image(), sample_image(spot=True)


@pytest.fixture
def client(service: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        yield client


def files(*images: np.ndarray, binary: bool = True) -> Any:
    given = triton.InferInput("image", [len(images)], "BYTES")
    given.set_data_from_numpy(np.array([encoded(image) for image in images], np.object_), binary_data=binary)
    return given


def pixels(values: np.ndarray, *, binary: bool = True) -> Any:
    given = triton.InferInput("image", list(values.shape), "UINT8")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def test_it_finds_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("green")
    assert not client.is_model_ready("bottle")
    assert client.get_server_metadata()["name"] == "moleflow"
    assert client.get_model_metadata("moleflow")["outputs"][-1]["shape"] == [-1, 64, 64]


def test_it_gets_all_outputs_of_several_files(client: Any) -> None:
    found = client.infer("moleflow", [files(GOOD, SPOT)], request_id="7")
    assert found.get_response()["id"] == "7"
    assert found.as_numpy("verdict").tolist() == [b"good", b"anomalous"]
    assert found.as_numpy("task").tolist() == [b"green", b"green"]
    assert found.as_numpy("score").dtype == np.float32
    assert found.as_numpy("map").shape == (2, 64, 64)
    assert np.isfinite(found.as_numpy("map")).all()


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_it_sends_pixels_and_gets_tensors_either_way(client: Any, binary_input: bool, binary_output: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in ("score", "verdict", "map")]
    found = client.infer("green", [pixels(np.stack([GOOD, SPOT]), binary=binary_input)], outputs=wanted)
    expected = client.infer("green", [files(GOOD, SPOT)])
    for name in ("score", "map"):
        assert np.array_equal(found.as_numpy(name), expected.as_numpy(name))
    verdicts = [each.encode() if isinstance(each, str) else each for each in found.as_numpy("verdict")]
    assert verdicts == [b"good", b"anomalous"]


def test_numbers_of_an_unknown_product_are_not_numbers(client: Any) -> None:
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("score", "map")]
        found = client.infer("moleflow", [pixels(np.zeros((40, 30, 3), np.uint8))], outputs=wanted)
        assert np.isnan(found.as_numpy("score")).all()
        assert np.isnan(found.as_numpy("map")).all()


def test_it_understands_errors(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="red, green, blue") as raised:
        client.infer("bottle", [files(GOOD)])
    assert raised.value.status() == "404"
    with pytest.raises(InferenceServerException, match="no output 'mask'"):
        client.infer("moleflow", [files(GOOD)], outputs=[triton.InferRequestedOutput("mask")])


def test_headers_and_parameters_reach_the_service(client: Any) -> None:
    found = client.infer(
        "moleflow",
        [files(SPOT)],
        headers={"X-Request-Timeout-Ms": "60000"},
        parameters={"false_alarm_rate": 0.4},
    )
    assert found.as_numpy("threshold")[0] < client.infer("moleflow", [files(SPOT)]).as_numpy("threshold")[0]
