"""The benchmark counts what a service answers, wrong routing included."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.accuracy import http_sequence
from benchmarks.shared.errors import BenchmarkError
from moleflow.model.images.decode import open_rgb
from moleflow.training.data.datasets import load_category


def image(path: Path, product: int, bright: bool) -> None:
    """An image whose red tells the product, and whose upper half is bright in green when it is defective."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = product
    pixels[:4, :, 1] = 255 * bright
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``nut`` with masks, ``bolt`` without. One good bolt looks like a nut."""
    for product, name in ((10, "nut"), (20, "bolt")):
        folder = tmp_path / name
        image(folder / "train" / "good" / "0.png", product, False)
        for number in range(3):
            image(folder / "test" / "good" / f"{number}.png", product, False)
            image(folder / "test" / "bad" / f"{number}.png", product, True)
    image(tmp_path / "bolt" / "test" / "good" / "2.png", 10, False)
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    for number in range(3):
        path = tmp_path / "nut" / "ground_truth" / "bad" / f"{number}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return tmp_path


def service(request: httpx.Request) -> httpx.Response:
    """Routes by the red channel and scores by the green one; the expert for nuts calls everything anomalous."""
    if request.url.path == "/tasks":
        return httpx.Response(200, json={"checkpoint": {"name": "c", "digest": "d"}, "tasks": [{"name": "nut"}]})
    pixels = open_rgb(request.content)
    task = request.url.params.get("task") or {10: "nut", 20: "bolt"}.get(int(pixels[0, 0, 0]))
    if task is None:
        routing = {"candidates": [{"name": "bolt"}, {"name": "nut"}]}
        return httpx.Response(200, json={"verdict": "unknown_product", "task": None, "routing": routing})
    green = pixels[..., 1].astype(np.float32)
    anomaly_map = None
    if request.url.params["map"] == "npy":
        buffer = io.BytesIO()
        np.save(buffer, green)
        anomaly_map = {"data": base64.b64encode(buffer.getvalue()).decode()}
    score = float(green.mean()) + (1000 if task == "nut" else 0)
    body = {"task": {"name": task}, "score": score, "is_anomalous": score > 50, "anomaly_map": anomaly_map}
    body["verdict"] = "anomalous" if score > 50 else "good"
    return httpx.Response(200, json=body)


def client(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(handler), base_url="http://service")


def test_the_figures_count_wrong_routing(data: Path) -> None:
    categories = [load_category(data, name) for name in ("nut", "bolt")]
    result = http_sequence.measure(client(service), categories, connections=3, forced=False)
    nut, bolt = result["categories"]
    assert (nut["good"], nut["defective"], nut["routing_accuracy"]) == (3, 3, 1)
    assert (nut["image_auroc"], nut["image_ap"], nut["pixel_auroc"], nut["pixel_ap"]) == (1, 1, 1, 1)
    assert (nut["false_alarm_rate"], nut["defect_recall"]) == (1, 1)
    # The good bolt that was taken for a nut scores highest of all bolts, and is called anomalous.
    assert bolt["routing_accuracy"] == pytest.approx(5 / 6)
    assert bolt["image_auroc"] == pytest.approx(2 / 3)
    assert bolt["false_alarm_rate"] == pytest.approx(1 / 3)
    assert (bolt["pixel_auroc"], bolt["pixel_ap"]) == (None, None)
    assert result["routing_accuracy"] == pytest.approx(11 / 12)
    assert result["mean"]["image_auroc"] == pytest.approx(5 / 6)
    assert result["mean"]["pixel_auroc"] == 1
    json.dumps(result, allow_nan=False)


def test_a_refused_image_is_an_alarm_and_routed_wrongly_and_ranked_by_the_nearest_product(data: Path) -> None:
    image(data / "bolt" / "test" / "good" / "2.png", 99, False)
    result = http_sequence.measure(client(service), [load_category(data, "bolt")], connections=1, forced=False)
    [bolt] = result["categories"]
    assert bolt["routing_accuracy"] == pytest.approx(5 / 6)
    assert bolt["false_alarm_rate"] == pytest.approx(1 / 3)
    assert bolt["image_auroc"] == 1


def test_with_the_product_named_the_router_is_not_measured(data: Path) -> None:
    result = http_sequence.measure(client(service), [load_category(data, "bolt")], connections=1, forced=True)
    assert result["categories"][0]["image_auroc"] == 1
    assert result["routing_accuracy"] is None


def test_a_full_queue_is_waited_for(data: Path) -> None:
    refused: list[httpx.Request] = []

    def busy_at_first(request: httpx.Request) -> httpx.Response:
        if len(refused) < 2:
            refused.append(request)
            return httpx.Response(429, headers={"retry-after": "0"})
        return service(request)

    result = http_sequence.measure(client(busy_at_first), [load_category(data, "nut")], connections=1, forced=False)
    assert len(refused) == 2
    assert result["images"] == 6


def test_any_other_answer_ends_the_measurement_with_its_reason(data: Path) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, text="draining")

    with pytest.raises(BenchmarkError, match="answered 503: draining"):
        http_sequence.measure(client(broken), [load_category(data, "nut")], connections=2, forced=False)


def test_a_service_that_is_not_there_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", "http://127.0.0.1:9", "--data", str(data), "--category", "nut"]
    assert main(["http_sequence", *arguments]) == 2
    assert "http://127.0.0.1:9 does not list its products" in capsys.readouterr().err


def test_a_category_without_test_images_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(data / "mug" / "0.png", 30, False)
    arguments = ["--url", "http://127.0.0.1:9", "--data", str(data), "--category", "mug"]
    assert main(["http_sequence", *arguments]) == 2
    assert "mug holds no test images" in capsys.readouterr().err


def test_a_result_is_shown_in_percent(data: Path) -> None:
    result = http_sequence.measure(client(service), [load_category(data, "bolt")], connections=1, forced=False)
    printed = http_sequence.markdown(result)
    assert "| 66.67 |" in printed
    assert "| – |" in printed
