"""Several processes serve behind one port, and none is missed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from forked import Process, Processes, moleflow_code
from running import PATIENCE, eventually, free_port
from sample_images import encoded
from tiny_model import PLUGIN, product_image, tiny_checkpoint

PNG = {"Content-Type": "image/png"}
IMAGE = encoded(product_image(0, 50))


class Several:
    """A service of two processes."""

    def __init__(self, process: Process, port: int, checkpoint: Path) -> None:
        self.process, self.checkpoint = process, checkpoint
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> httpx.Response:
        """Over a connection of its own, which any process may take."""
        return httpx.get(self.url + path, timeout=PATIENCE)

    def post(self, path: str, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **options)  # type: ignore[arg-type]

    def samples(self, name: str) -> dict[str, float]:
        """The values of a metric, by process."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name}{{"):
                labels, _, value = line.rpartition(" ")
                process = labels.partition('process="')[2].partition('"')[0]
                found[process] = found.get(process, 0.0) + float(value)
        return found

    def children(self) -> list[int]:
        """The processes that serve."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]


@pytest.fixture(scope="module")
def service(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    folder = tmp_path_factory.mktemp("several")
    path = tiny_checkpoint(folder / "factory.safetensors").path
    port = free_port()
    options = ["--processes", "2", "--lame-duck-seconds", "0", "--unknown-limit", "0", "--feedback"]
    process = processes.start(
        moleflow_code("serve", path, "--port", port, "--plugin", PLUGIN, *options, folder / "kept")
    )
    several = Several(process, port, path)

    def is_ready() -> bool:
        assert process.running(), process.finish().stderr
        try:
            return several.samples("moleflow_ready") == {"0": 1.0, "1": 1.0}
        except httpx.TransportError:
            return False

    assert eventually(is_ready)
    yield several
    process.kill(signal.SIGTERM)
    assert process.finish().status == 0


def test_feedback_finds_the_process_that_gave_the_answer(service: Several) -> None:
    answers = [service.post("/predict", content=IMAGE, headers=PNG).json() for _ in range(8)]
    for answer in answers:
        path = f"/predictions/{answer['id']}/feedback"
        for _ in range(2):
            kept = service.post(path, json={"verdict": "good"})
            assert (kept.status_code, kept.json()["id"]) == (200, answer["id"])
    assert service.post(f"/predictions/00{answers[0]['id'][2:]}x/feedback", json={"verdict": "good"}).status_code == 404


def test_a_reload_reaches_every_process(service: Several) -> None:
    before = service.samples("moleflow_reloads_total")
    assert service.post("/admin/reload").status_code == 200
    assert service.samples("moleflow_reloads_total") == {process: count + 1 for process, count in before.items()}


def test_a_process_that_is_killed_is_started_again_and_no_request_fails(service: Several) -> None:
    (killed, other) = service.children()
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: killed not in service.children())
    while service.samples("moleflow_ready") != {"0": 1.0, "1": 1.0}:
        assert service.post("/predict?map=none", content=IMAGE, headers=PNG).status_code == 200
    assert other in service.children()
    assert len(service.children()) == 2


def test_a_service_that_cannot_start_says_why_once(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(json.dumps({}).encode())
    done = processes.start(moleflow_code("serve", path, "--processes", 2, "--port", 0)).finish()
    assert done.status == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "broken.safetensors" in said[0]
