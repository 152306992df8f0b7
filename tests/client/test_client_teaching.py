"""Feedback and teaching by the typed client, with a command in the place of training."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_training import COUNTS, WAITS, Says
from running import Running, serve_checkpoint
from sample_images import encoded
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import product_image, tiny_checkpoint

from moleflow.client import AsyncClient, Client, Job, JobFailedError, teaching
from moleflow.client.teaching import teach_calls

PIXELS = [product_image(5, seed) for seed in range(3)]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(teaching, "POLL_SECONDS", 0.05)
    for client in ("synchronous", "asynchronous"):
        monkeypatch.setattr(f"moleflow.client.{client}.POLL_SECONDS", 0.05)
    path = tiny_checkpoint(tmp_path / "factory.safetensors", ("bolt", "nut")).path
    with serve_checkpoint(path, teaching=tmp_path / "teaching", feedback=tmp_path / "feedback") as running:
        yield running


def test_a_product_is_taught_and_the_end_of_its_job_awaited(service: Running, training: Says, tmp_path: Path) -> None:
    (tmp_path / "last.png").write_bytes(encoded(PIXELS[2]))
    training("import time; time.sleep(0.3)")
    seen: list[Job] = []
    with Client(service.url) as client:
        results = client.teach("cog 2", [PIXELS[0], encoded(PIXELS[1]), tmp_path / "last.png", b"no image"])
        assert [(each.file, each.error and each.error.status) for each in results[2:]] == [
            ("last.png", None),
            ("image", 415),
        ]
        ended = client.train("cog 2", on_progress=seen.append)
        assert (ended.state, ended.images) == ("done", 3)
        assert seen[-1] == ended


def test_a_job_that_fails_is_an_error_and_one_can_be_cancelled(service: Running, training: Says) -> None:
    async def teach_and_train() -> None:
        async with AsyncClient(service.url) as client:
            await client.teach("cog", [PIXELS[0]])
            training(COUNTS)
            with pytest.raises(JobFailedError, match="for 'cog' is failed: cog False 1") as failed:
                await client.train("cog", epochs=3)
            assert failed.value.job.epochs == 3
            training(WAITS)
            begun = await client.train("cog", wait=False)
            assert (await client.cancel(begun.id)).state == "cancelled"
            assert (await client.job(begun.id)).state == "cancelled"

    asyncio.run(teach_and_train())


def test_feedback_is_given_for_an_answer(service: Running) -> None:
    with Client(service.url) as client:
        answer = client.predict(PIXELS[0], task="nut")
        assert answer.id is not None
        assert client.feedback(answer.id, "good").task == "nut"
        assert client.feedback(answer.id, "defect", task="bolt").file == f"bolt/test/defect/{answer.id}.png"


def test_many_images_are_sent_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(call.options["files"]) for call in teach_calls("cog", [b"x"] * 40)] == [16, 16, 8]
    monkeypatch.setattr(teaching, "_MOST_BYTES", 10)
    assert [len(call.options["files"]) for call in teach_calls("cog", [b"x" * 4] * 3 + [b"x" * 20])] == [2, 1, 1]
