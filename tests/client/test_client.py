"""The typed client against a real service with the dummy model."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from running import Running, free_port, run_server
from sample_images import encoded, sample_image

from moleflow.client import (
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    FolderResult,
    ImageRefusedError,
    InvalidRequestError,
    ResponseError,
    ServiceFailedError,
    UnreachableError,
    UnreadableFileError,
    decode_map,
)
from moleflow.client.exchange import check, read
from moleflow.retrying import backoff_seconds, retry_after_seconds
from moleflow.service.responses.schemas import PredictionResponse, TasksResponse

PIXELS = sample_image(spot=True)
IMAGE = encoded(PIXELS)
WHITE = encoded(np.full((60, 90, 3), 255, np.uint8))


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with run_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images and a file that is none."""
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(IMAGE)
    (tmp_path / "5.png").write_bytes(b"no image")
    return tmp_path


def test_a_path_bytes_and_pixels_give_the_same_prediction(client: Client, service: Running, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(IMAGE)
    answers = [client.predict(image) for image in (path, str(path), IMAGE, PIXELS)]
    assert len({answer.score for answer in answers}) == 1
    raw = service.predict(IMAGE, map="none").json()
    own = {"timing_ms": None, "id": None}
    assert json.loads(answers[0].model_dump_json()) | own == raw | own


def test_grey_pixels_of_8_and_16_bits_can_be_sent(client: Client) -> None:
    grey = np.full((20, 30), 100, np.uint8)
    assert client.predict(grey).score == client.predict(grey.astype(np.uint16) * 257).score
    with pytest.raises(ValueError, match="float64"):
        client.predict(np.zeros((4, 4, 3)))


def test_options_are_those_of_the_api_and_the_map_is_an_array(client: Client) -> None:
    found = client.predict(IMAGE, task="blue", false_alarm_rate=0.001, map="npy")
    assert found.task is not None and found.task.name == "blue"
    assert found.false_alarm_rate == 0.001
    assert found.anomaly_map is not None
    exact = decode_map(found.anomaly_map)
    assert exact.shape == (64, 64) and exact.max() == found.anomaly_map.maximum
    stored = client.predict(IMAGE, task="blue", map="png").anomaly_map
    assert stored is not None
    np.testing.assert_allclose(decode_map(stored), exact, atol=np.ptp(exact) / 65535)


def test_several_images_are_predicted_in_one_request(client: Client) -> None:
    found = client.predict_batch([IMAGE, b"no image"])
    assert found[0].prediction is not None and found[0].prediction.verdict == "anomalous"
    assert found[1].error is not None and found[1].error.status == 415


def test_products_and_readiness_are_typed(client: Client) -> None:
    assert [task.name for task in client.tasks().tasks] == ["red", "green", "blue"]
    assert client.ready().checkpoint.name == "dummy.safetensors"


def test_a_folder_is_predicted_in_order_and_errors_are_results(client: Client, folder: Path) -> None:
    found = list(client.predict_folder(folder, concurrency=3, task="green"))
    assert [each.path.name for each in found] == [f"{number}.png" for number in range(12)]
    assert [type(each.error) for each in found if each.error] == [ImageRefusedError]
    assert all(each.prediction is not None for each in found if each.path.name != "5.png")


def test_a_folder_that_cannot_be_used_is_a_result_too(client: Client, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        (found,) = client.predict_folder(folder)
        assert found.path == folder and isinstance(found.error, UnreadableFileError)


def test_the_asynchronous_client_does_the_same(service: Running, folder: Path) -> None:
    async def work() -> tuple[PredictionResponse, list[FolderResult]]:
        async with AsyncClient(service.url) as client:
            assert len((await client.tasks()).tasks) == 3
            assert (await client.ready()).status == "ready"
            assert len(await client.predict_batch([IMAGE, IMAGE])) == 2
            with pytest.raises(InvalidRequestError):
                await client.predict(IMAGE, task="bottle")
            return await client.predict(PIXELS), [each async for each in client.predict_folder(folder, concurrency=3)]

    one, many = asyncio.run(work())
    assert one.verdict == "anomalous"
    assert [each.path.name for each in many] == [f"{number}.png" for number in range(12)]
    assert [type(each.error) for each in many if each.error] == [ImageRefusedError]


@pytest.mark.parametrize(
    ("image", "options", "kind", "status", "slug"),
    [
        (b"no image", {}, ImageRefusedError, 415, "unsupported-image"),
        (IMAGE, {"task": "bottle"}, InvalidRequestError, 404, "unknown-task"),
        (IMAGE, {"false_alarm_rate": 2.0}, InvalidRequestError, 422, "invalid-request"),
        (WHITE, {}, ServiceFailedError, 500, "internal-error"),
    ],
)
def test_errors_carry_the_problem_document(
    client: Client, image: bytes, options: dict[str, str], kind: type[ResponseError], status: int, slug: str
) -> None:
    with pytest.raises(kind) as caught:
        client.predict(image, **options)  # type: ignore[arg-type]
    error = caught.value
    assert isinstance(error, ResponseError)
    assert (error.status, error.type) == (status, f"urn:moleflow:problem:{slug}")
    assert error.detail in str(error) and error.instance.startswith("urn:uuid:")


def test_a_file_that_cannot_be_read_is_not_sent(client: Client, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"missing\.png"):
        client.predict(tmp_path / "missing.png")


def test_a_full_service_is_asked_again_after_the_time_that_it_names() -> None:
    with run_server(queue_size=1) as running, Client(running.url) as client:
        holder = running.hold()
        threading.Timer(0.2, running.detector.gate.set).start()
        started = time.monotonic()
        assert client.predict(IMAGE).verdict == "anomalous"
        assert time.monotonic() - started >= 1  # Retry-After is in whole seconds
        holder.join()
        assert running.metric("moleflow_requests_total", route="/predict", status="429") == 1


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, deadline=0.5) as client:
            await client.predict(IMAGE)

    with run_server(queue_size=1) as running:
        holder = running.hold()
        started = time.monotonic()
        with Client(running.url, deadline=0.5) as client, pytest.raises(BusyError) as caught:
            client.predict(IMAGE)
        with pytest.raises(BusyError):
            asyncio.run(ask(running.url))
        assert time.monotonic() - started < 10
        assert caught.value.status == 429 and caught.value.retry_after_seconds >= 1
        running.detector.gate.set()
        holder.join()


def test_a_service_that_hangs_is_left_at_the_deadline() -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, deadline=0.2) as client:
            await client.predict(IMAGE)

    with run_server() as running:
        holder = running.hold()
        with Client(running.url, deadline=0.2) as client, pytest.raises(UnreachableError):
            client.predict(IMAGE)
        with pytest.raises(UnreachableError):
            asyncio.run(ask(running.url))
        running.detector.gate.set()
        holder.join()


def test_no_service_and_no_address_are_clear_errors() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}", retries=0) as client,
        pytest.raises(UnreachableError, match="respond"),
    ):
        client.tasks()
    with pytest.raises(ClientError, match="address such as"):
        Client("localhost:8000")


def answer(status: int, **content: object) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://service"), **content)  # type: ignore[arg-type]


def test_fields_of_a_newer_service_are_left_out(service: Running) -> None:
    data = service.predict(IMAGE, map="none").json()
    newer = data | {"new": 1, "regions": [each | {"new": 2} for each in data["regions"]]}
    assert read(PredictionResponse, answer(200, json=newer)) == PredictionResponse.model_validate(data)
    with pytest.raises(ClientError, match="not a TasksResponse"):
        read(TasksResponse, answer(200, json=data))
    with pytest.raises(ClientError, match="not a TasksResponse"):
        read(TasksResponse, answer(200, text="<html>"))


def test_an_error_that_is_no_problem_document_is_one_all_the_same() -> None:
    with pytest.raises(ServiceFailedError, match="Bad Gateway") as caught:
        check(answer(502, text="<html>no upstream</html>"))
    assert caught.value.detail == "<html>no upstream</html>"
    with pytest.raises(BusyError) as busy:
        check(answer(503, headers={"retry-after": "7"}))
    assert busy.value.retry_after_seconds == 7


def test_waits_double_and_servers_name_theirs_in_seconds_or_as_a_date() -> None:
    assert all(0.25 * 2**n <= backoff_seconds(n) <= 0.5 * 2**n for n in range(6))
    assert backoff_seconds(1000) <= 30
    assert [retry_after_seconds(each) for each in (None, "3", "soon", "Fri, 01 Jan 1999 00:00:00 GMT")] == [0, 3, 0, 0]


def test_an_api_key_is_sent_with_every_request(tmp_path: Path) -> None:
    async def ask(url: str) -> int:
        async with AsyncClient(url, key=key) as client:
            return len((await client.tasks()).tasks)

    key = "0123456789abcdef0123456789abcdef"
    (tmp_path / "keys").write_text(f"line-1 predict {key}\n")
    with run_server(api_keys=tmp_path / "keys") as running:
        with Client(running.url, key=key) as client:
            assert client.predict(IMAGE).verdict == "anomalous"
        assert asyncio.run(ask(running.url)) == 3
        with Client(running.url) as client, pytest.raises(InvalidRequestError) as caught:
            client.predict(IMAGE)
    assert caught.value.status == 401


def test_without_httpx_the_extra_is_named() -> None:
    code = "import sys; sys.modules['httpx'] = None; import moleflow.client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "moleflow[client]" in done.stderr
