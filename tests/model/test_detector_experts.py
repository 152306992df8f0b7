"""Experts are read on first use, kept up to a limit, and shared by threads without changing a result."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from predictions import IMAGES, same_bits
from tiny_model import tiny_checkpoint, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint


def test_threads_on_different_products_do_not_affect_each_other(checkpoint: Checkpoint) -> None:
    detector = Detector.load(checkpoint.path, device="cpu", precision="fp32")
    names = ["bolt", "nut", "gear"]
    jobs = [([IMAGES[i % 5]] * (1 + i % 2), [names[i % 3]] * (1 + i % 2)) for i in range(30)]
    serial = [detector.predict(*job) for job in jobs]
    fresh = Detector.load(checkpoint.path, device="cpu", precision="fp32")
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda job: fresh.predict(*job), jobs))
    for one, other in zip(serial, threaded, strict=True):
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))


def test_detectors_with_different_grids_can_run_at_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # Modules do not store the grid's shape, in which these two detectors differ.
    larger = tiny_checkpoint(tmp_path / "larger.safetensors", config=tiny_config(image_size=48))
    detectors = [Detector.load(each.path, device="cpu", precision="fp32") for each in (checkpoint, larger)]
    serial = [each.predict(IMAGES[:1])[0] for each in detectors]
    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda each: each.predict(IMAGES[:1])[0], detectors * 4))
    assert [each.grid_map.shape for each in serial] == [(4, 4), (6, 6)]
    for index, each in enumerate(threaded):
        assert same_bits(each, serial[index % 2])


def test_a_small_expert_cache_does_not_change_results(checkpoint: Checkpoint, detector: Detector) -> None:
    small = Detector(checkpoint, device="cpu", precision="fp32", max_experts=1)
    expected = detector.predict(IMAGES)
    for _ in range(2):
        assert all(same_bits(one, other) for one, other in zip(small.predict(IMAGES), expected, strict=True))


def test_the_least_recently_used_expert_is_evicted_from_the_cache(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32", max_experts=2)
    merged: list[int] = []
    read = checkpoint.product
    monkeypatch.setattr(checkpoint, "product", lambda index: merged.append(index) or read(index))
    for name in ("bolt", "nut", "bolt", "gear", "bolt", "nut"):
        detector.predict(IMAGES[:1], [name])
    assert merged == [0, 1, 2, 1]


def test_experts_are_read_on_first_use(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Checkpoint.open(checkpoint.path)
    asked: list[str] = []
    read = opened.section
    monkeypatch.setattr(opened, "section", lambda name: asked.append(name) or read(name))
    detector = Detector(opened, device="cpu", precision="fp32")
    assert sorted(asked) == ["backbone", "base", *(f"tasks.{index}.profile" for index in range(3))]
    asked.clear()
    detector.predict(IMAGES[:1] * 2, ["nut", "nut"])
    detector.predict(IMAGES[:1], ["nut"])
    assert asked == ["tasks.1.expert"]


def test_warming_up_merges_the_first_experts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32")
    detector.warm_up(2)
    monkeypatch.setattr(checkpoint, "product", lambda index: pytest.fail("an expert was read after warming up"))
    detector.predict(IMAGES)


def test_predicting_does_not_change_the_detector(detector: Detector) -> None:
    first = detector.predict(IMAGES)
    detector.predict([np.zeros((32, 32, 3), np.uint8)] * 3, ["bolt", "nut", "gear"])
    assert all(same_bits(one, other) for one, other in zip(first, detector.predict(IMAGES), strict=True))
