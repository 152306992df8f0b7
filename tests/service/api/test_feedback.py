"""Feedback keeps the images of answers, in a layout that training reads."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from running import PATIENCE, Running, run_server
from sample_images import encoded, sample_image

from moleflow.service.engine import feedback
from moleflow.training.data.datasets import load_category

GOOD, JPEG = encoded(sample_image()), encoded(sample_image(90, 70), "JPEG")
BLACK = encoded(sample_image() * 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture
def keeping(folder: Path) -> Iterator[Running]:
    with run_server(feedback=folder) as running:
        yield running


def ask(service: Running, data: bytes = GOOD) -> str:
    """The id of the answer to an image."""
    return service.predict(data, map="none").json()["id"]


def tell(service: Running, identifier: str, verdict: str = "good", **more: str) -> httpx.Response:
    return service.client.post(f"/predictions/{identifier}/feedback", json={"verdict": verdict, **more})


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["type"].rpartition(":")[2]


def test_the_images_are_kept_as_they_were_sent_and_training_reads_them(keeping: Running, folder: Path) -> None:
    good, defect = ask(keeping), ask(keeping, JPEG)
    told = tell(keeping, good).json()
    assert told == {"id": good, "task": "green", "verdict": "good", "file": f"green/train/good/{good}.png"}
    assert tell(keeping, defect, "defect").json()["file"] == f"green/test/defect/{defect}.jpg"
    assert (folder / "green/train/good" / f"{good}.png").read_bytes() == GOOD
    category = load_category(folder, "green", check=False)
    assert [path.stem for path in category.train] == [good]
    assert [(sample.path.stem, sample.is_anomalous) for sample in category.test] == [(defect, True)]
    assert keeping.metric("moleflow_feedback_total", task="green", verdict="defect") == 1


def test_another_feedback_for_an_answer_replaces_the_first(keeping: Running, folder: Path) -> None:
    identifier = ask(keeping)
    for verdict, task in (("good", "green"), ("good", "green"), ("defect", "red")):
        assert tell(keeping, identifier, verdict, task=task).status_code == 200
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")] == [
        f"red/test/defect/{identifier}.png"
    ]


def test_an_image_of_an_unknown_product_needs_the_true_one(keeping: Running) -> None:
    identifier = ask(keeping, BLACK)
    assert problem(tell(keeping, identifier)) == (422, "invalid-request")
    assert tell(keeping, identifier, task="blue").json()["task"] == "blue"
    assert problem(tell(keeping, identifier, task="bottle")) == (404, "unknown-task")


def test_the_folder_and_the_memory_are_bounded(folder: Path) -> None:
    with run_server(feedback=folder, feedback_bytes=3 * len(GOOD), feedback_memory=4 * len(GOOD)) as service:
        answers = [ask(service) for _ in range(4)]
        assert [tell(service, each).status_code for each in answers] == [200, 200, 200, 507]
        assert len(list(folder.rglob("*.png"))) == 3
        ask(service)
        assert problem(tell(service, answers[0])) == (404, "unknown-answer")


def test_every_answer_has_an_id_of_its_own_in_every_format(service: Running) -> None:
    ids = {ask(service), ask(service), service.predict(GOOD, {"accept": "image/png"}).headers["moleflow-id"]}
    assert len(ids) == 3


def test_without_the_setting_no_feedback_is_accepted(service: Running) -> None:
    response = tell(service, ask(service))
    assert problem(response) == (404, "unknown-answer")
    assert "MOLEFLOW_FEEDBACK" in response.json()["detail"]


def test_a_wrong_verdict_is_a_problem_that_says_what_is_right(keeping: Running) -> None:
    response = tell(keeping, ask(keeping), "fine")
    assert response.status_code == 422
    assert "'good' or 'defect'" in response.json()["detail"]


def test_answers_do_not_wait_while_an_image_is_being_written(keeping: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    identifier, writing, go_on = ask(keeping), threading.Event(), threading.Event()
    write = feedback.atomic_write

    def slow(path: Path) -> AbstractContextManager[Path]:
        writing.set()
        assert go_on.wait(PATIENCE)
        return write(path)

    monkeypatch.setattr(feedback, "atomic_write", slow)
    telling = threading.Thread(target=tell, args=(keeping, identifier))
    telling.start()
    assert writing.wait(PATIENCE)
    assert keeping.predict(GOOD, map="none").status_code == 200
    assert keeping.client.get("/health/live").status_code == 200
    go_on.set()
    telling.join()
