"""A damaged product fails its own images only, and is reported until it is repaired."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from dummy import DummyDetector
from running import Running, eventually, run_server
from sample_images import encoded

from moleflow.model.errors import ExpertError
from moleflow.model.verdict.results import Failure

WHITE = encoded(np.full((60, 90, 3), 255, np.uint8))


COLOURS = {"red": (90, 0, 0), "green": (0, 90, 0), "blue": (0, 0, 90)}


class Damaged(DummyDetector):
    """The expert of the green product is damaged, or those of the products ``damaged``."""

    damaged: tuple[str, ...] = ("green",)

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
        return [
            Failure(ExpertError(each.task.name, "/secret is cut.")) if each.task.name in self.damaged else each
            for each in super().predict(images, tasks)
        ]


def of(name: str) -> bytes:
    return encoded(np.full((40, 50, 3), COLOURS[name], np.uint8))


def ready(running: Running) -> httpx.Response:
    return running.client.get("/health/ready")


def test_a_damaged_product_fails_only_its_own_images_and_is_reported() -> None:
    with run_server(Damaged()) as running, ThreadPoolExecutor(6) as pool:
        names = ["red", "green", "blue"] * 2
        answers = list(pool.map(running.predict, map(of, names)))
        for name, answer in zip(names, answers, strict=True):
            assert answer.status_code == (500 if name == "green" else 200)
        problem = answers[1].json()
        assert problem["type"].endswith("damaged-product")
        assert "'green'" in problem["detail"]
        assert "Restore" in problem["detail"]
        assert "/secret" not in problem["detail"]
        answer = ready(running)
        assert (answer.status_code, answer.json()["damaged_products"]) == (200, ["green"])
        assert running.metric("moleflow_damaged_products") == 1
        assert running.metric("moleflow_expert_failures_total", task="green") == 2


def test_a_repaired_product_is_no_longer_reported_as_damaged() -> None:
    model = Damaged()
    with run_server(model) as running:
        assert running.predict(of("green")).status_code == 500
        model.damaged = ()
        assert running.predict(of("green")).status_code == 200
        assert ready(running).json()["damaged_products"] == []


def test_a_service_with_only_damaged_products_is_ready_again_once_one_is_repaired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moleflow.service.engine.worker._MAX_TESTED", 1)
    model = Damaged()
    model.damaged = ("red", "green", "blue")
    with run_server(model) as running:
        assert [running.predict(of(name)).status_code for name in ("red", "green", "blue")] == [500, 500, 503]
        assert ready(running).status_code == 503
        model.damaged = ("red", "green")
        assert eventually(lambda: ready(running).status_code == 200)
        assert running.predict(of("blue")).status_code == 200


def test_an_image_that_fails_while_products_are_damaged_does_not_affect_readiness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moleflow.service.engine.worker._MAX_TESTED", 1)
    model = Damaged()
    model.damaged = ("red", "green")
    with run_server(model) as running:
        for _ in range(3):
            assert running.predict(WHITE).status_code == 500
            assert ready(running).status_code == 200
