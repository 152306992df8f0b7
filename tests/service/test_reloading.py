"""Products come and go while the service serves: a changed checkpoint file takes the old one's place."""

import gc
import signal
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from forked import Processes, moleflow_code
from running import PATIENCE, Running, eventually, serve_checkpoint
from sample_images import encoded
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import PLUGIN, damage, product_image, tiny_checkpoint, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.store.experts import MergedExperts
from moleflow.model.verdict.results import Prediction
from moleflow.service.engine.predictor import reload_predictor
from moleflow.service.settings import Settings

FEWER, ALL = ("bolt", "nut"), ("bolt", "nut", "gear")
IMAGES = {name: encoded(product_image(kind, 50)) for kind, name in enumerate(ALL)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of all three products."""
    return tiny_checkpoint(tmp_path / "factory.safetensors", ALL).path


@pytest.fixture
def service(path: Path) -> Iterator[Running]:
    with serve_checkpoint(path) as running:
        yield running


def answer(service: Running, name: str, **query: Any) -> dict[str, Any]:
    """The service's answer to an image of a product, without its times and its id."""
    found = service.predict(IMAGES[name], map="npy", map_size="model", **query).json()
    for own in ("timing_ms", "id"):
        found.pop(own, None)
    return found


def served(service: Running) -> list[str]:
    return [task["name"] for task in service.client.get("/tasks").json()["tasks"]]


def has_failed(service: Running, times: int) -> bool:
    return service.metric("moleflow_reloads_total", outcome="failed") == times


def last_reload(service: Running) -> dict[str, Any]:
    return service.client.get("/health/ready").json()["last_reload"] or {}


def test_a_changed_file_is_served_without_a_request(service: Running, path: Path) -> None:
    before = answer(service, "nut", task="nut")
    new = tiny_checkpoint(path, FEWER)
    assert eventually(lambda: served(service) == [*FEWER])
    after = answer(service, "nut", task="nut")
    assert after["checkpoint"]["digest"] == new.info.digest != before["checkpoint"]["digest"]
    for kept in ("score", "threshold", "p_value", "anomaly_map", "regions"):
        assert after[kept] == before[kept]
    assert service.metric("moleflow_reloads_total", outcome="succeeded") == 1
    assert last_reload(service)["succeeded"]


def test_a_broken_file_leaves_what_is_served_and_is_reported(service: Running, path: Path) -> None:
    before = answer(service, "nut")
    whole = path.read_bytes()
    for number, size in enumerate((1000, len(whole)), 1):
        broken = path.with_name("broken")
        broken.write_bytes(whole[:size])
        if size == len(whole):
            damage(broken, "tasks.2.expert")
        broken.replace(path)
        assert eventually(partial(has_failed, service, number))
        assert not last_reload(service)["succeeded"]
        assert "'factory.safetensors'" in last_reload(service)["detail"]
        assert str(path.parent) not in last_reload(service)["detail"]
        assert answer(service, "nut") == before
    assert service.metric("moleflow_reload_failed") == 1
    refused = service.client.post("/admin/reload")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:moleflow:problem:not-reloaded")
    tiny_checkpoint(path, FEWER)
    assert eventually(lambda: served(service) == [*FEWER])
    assert service.metric("moleflow_reload_failed") == 0


def test_no_request_is_lost_and_every_answer_is_that_of_the_checkpoint_it_names(path: Path, tmp_path: Path) -> None:
    # Another size of the input: images that were resized for the old model must not get to the new one.
    kinds = {"all": (ALL, None), "fewer": (FEWER, None), "larger": (ALL, tiny_config(image_size=64))}
    copies = {kind: tiny_checkpoint(tmp_path / f"{kind}.safetensors", *what) for kind, what in kinds.items()}
    expected: dict[tuple[str, str], tuple[str | float | None, ...]] = {}
    for each in copies.values():
        alone = Detector(each, device="cpu", precision="fp32")
        for kind, name in enumerate(FEWER):
            (right,) = alone.predict([product_image(kind, 50)])
            assert isinstance(right, Prediction)
            expected[each.info.digest, name] = right.task.name, right.score, right.p_value, right.threshold
    found: list[tuple[str, dict[str, Any]]] = []
    done = threading.Event()
    with serve_checkpoint(path, max_batch_size=4) as service:

        def ask(name: str) -> None:
            while not done.is_set():
                found.append((name, answer(service, name)))

        def is_answered(more_than: int) -> bool:
            return len(found) > more_than

        threads = [threading.Thread(target=ask, args=(name,)) for name in FEWER * 2]
        for thread in threads:
            thread.start()
        for copy in ("fewer", "larger", "all", "fewer"):
            new = path.with_name("new")
            new.write_bytes(copies[copy].path.read_bytes())
            new.replace(path)
            seen = len(found)
            assert service.client.post("/admin/reload").status_code == 200
            assert eventually(partial(is_answered, seen + len(threads)))
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert {given["checkpoint"]["digest"] for _, given in found} == {each.info.digest for each in copies.values()}
    for name, given in found:
        numbers = given["task"]["name"], given["score"], given["p_value"], given["threshold"]
        assert numbers == expected[given["checkpoint"]["digest"], name]


def test_products_are_removed_hidden_and_renamed_by_requests(path: Path) -> None:
    with serve_checkpoint(path, reload_seconds=0) as service:
        before = answer(service, "gear", task="gear")
        renamed = service.client.patch("/tasks/gear", json={"name": "cog wheel"}).json()
        assert [task["name"] for task in renamed["tasks"]] == ["bolt", "nut", "cog wheel"] == served(service)
        refused = service.client.delete("/tasks/bolt")
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:moleflow:problem:not-changed")
        assert "hide=true" in refused.json()["detail"]
        hidden = service.client.delete("/tasks/bolt", params={"hide": True}).json()
        assert [(task["name"], task["index"]) for task in hidden["tasks"]] == [("nut", 0), ("cog wheel", 1)]
        assert service.client.get("/tasks/bolt").status_code == 404
        assert service.client.patch("/tasks/bolt", json={"hidden": False}).status_code == 200
        assert service.client.delete("/tasks/nut").status_code == 200
        assert served(service) == ["bolt", "cog wheel"]
        assert service.client.delete("/tasks/nut").status_code == 404
        after = answer(service, "gear", task="cog wheel")
        assert [after[name] for name in ("score", "threshold")] == [before[name] for name in ("score", "threshold")]


def test_an_area_is_set_by_polygons_or_a_mask_shown_and_cleared_by_requests(path: Path) -> None:
    whole = path.read_bytes()
    left_half = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
    mask = np.zeros((40, 60, 3), np.uint8)
    mask[20:] = 255
    with serve_checkpoint(path, reload_seconds=0) as service:
        before = answer(service, "gear", task="gear")
        drawn = service.client.put("/tasks/gear/area", json={"ignore": [left_half]})
        assert drawn.status_code == 200, drawn.text
        area = service.client.get("/tasks/gear").json()["area"]
        assert area == drawn.json()["tasks"][2]["area"]
        assert (area["patches"], area["ignore"], area["inspect"]) == (["0011"] * 4, [left_half], [])
        assert area["calibration_images"] is None
        after = answer(service, "gear", task="gear")
        assert after["score"] <= before["score"]
        assert (before["inspected"], after["inspected"]) == (None, ["0011"] * 4)
        assert after["threshold"] == before["threshold"]
        kind = {"content-type": "image/png"}
        service.client.put("/tasks/gear/area", content=encoded(mask), headers=kind).raise_for_status()
        assert service.client.get("/tasks/gear").json()["area"]["patches"] == ["0000", "0000", "1111", "1111"]
        refused = service.client.put("/tasks/gear/area", content=encoded(0 * mask), headers=kind)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:moleflow:problem:not-changed")
        assert "inspects 0 of 4 × 4 patches" in refused.json()["detail"]
        assert service.client.put("/tasks/cog/area", json={"ignore": [left_half]}).status_code == 404
        assert service.client.delete("/tasks/gear/area").status_code == 200
        assert service.client.get("/tasks/gear").json()["area"] is None
        assert answer(service, "gear", task="gear")["score"] == before["score"]
    assert path.read_bytes() == whole


def test_the_merged_experts_of_unchanged_products_are_kept(path: Path) -> None:
    settings = Settings(checkpoint=path, device="cpu", precision="fp32", engine="torch")
    old = Detector.load(path, device="cpu", precision="fp32")
    old.warm_up()
    tiny_checkpoint(path, FEWER)
    new = reload_predictor(settings, old)
    assert isinstance(new, Detector)
    assert sorted(new.products.experts.held()) == [0, 1]
    kept, before = new.products.experts, old.products.experts
    assert isinstance(kept, MergedExperts) and isinstance(before, MergedExperts)
    assert all(kept.get(index) is before.get(index) for index in range(2))
    assert new._computes.features is old._computes.features


def test_a_model_that_was_replaced_is_freed_at_once(path: Path) -> None:
    settings = Settings(checkpoint=path, device="cpu", precision="fp32", engine="torch")
    old = Detector.load(path, device="cpu", precision="fp32")
    gone = weakref.ref(old)
    gc.disable()
    try:
        new = reload_predictor(settings, old)
        del old
        assert gone() is None
        assert new.tasks
    finally:
        gc.enable()


def test_another_backbone_or_base_is_not_taken_for_the_old_one(path: Path) -> None:
    old = Detector.load(path, device="cpu", precision="fp32")
    old.warm_up()
    other = tiny_checkpoint(path, ALL, tiny_config(lora_rank=3))
    new = Detector(other, device="cpu", precision="fp32", previous=old)
    assert not new.products.experts.held()
    assert new._computes.features is not old._computes.features


def test_a_file_that_is_not_looked_at_is_reloaded_on_request_only(path: Path) -> None:
    with serve_checkpoint(path, reload_seconds=0) as service:
        tiny_checkpoint(path, FEWER)
        assert served(service) == [*ALL]
        assert len(service.client.post("/admin/reload").json()["tasks"]) == 2
        response = service.predict(IMAGES["gear"], task="gear")
        assert (response.status_code, response.json()["type"]) == (404, "urn:moleflow:problem:unknown-task")
        assert "learned: bolt, nut" in response.json()["detail"]


def test_a_missing_file_changes_nothing_and_a_new_one_is_served(service: Running, path: Path) -> None:
    path.unlink()
    assert service.client.post("/admin/reload").status_code == 409
    assert served(service) == [*ALL]
    tiny_checkpoint(path, FEWER)
    assert eventually(lambda: served(service) == [*FEWER])


def test_sighup_reloads(path: Path, processes: Processes) -> None:
    options = ["--port", 0, "--device", "cpu", "--precision", "fp32", "--cpu-workers", 1, "--reload-seconds", 0]
    process = processes.start(moleflow_code("serve", path, "--plugin", PLUGIN, *options))
    try:
        url = process.line(0).rpartition(" ")[2]
        tiny_checkpoint(path, FEWER)
        process.kill(signal.SIGHUP)
        assert eventually(lambda: len(httpx.get(f"{url}/tasks").json()["tasks"]) == 2)
    finally:
        process.kill()
