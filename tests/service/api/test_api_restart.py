"""What only a restart mends is reported by liveness, and a service that hangs stops in time."""

import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from dummy import DummyDetector
from forked import Processes
from health import Moody, live, ready
from running import eventually, run_server, serve_in_a_process
from sample_images import encoded, sample_image

from moleflow.service.engine.predictor import Predictor
from moleflow.service.errors import NotLiveError
from moleflow.service.server import serve
from moleflow.service.settings import Settings

WHITE = encoded(np.full((60, 90, 3), 255, np.uint8))

HANGS = """
import time
from concurrent.futures import ThreadPoolExecutor

class Hanging(DummyDetector):
    def predict(self, images, tasks=None):
        print("working", flush=True)
        hang()

def hang():
    # In a pool, as in the model: the interpreter waits for its threads at exit.
    ThreadPoolExecutor(1).submit(time.sleep, 3600).result()

def load(settings):
    print("loading", flush=True)
    hang()
"""

STOP_SECONDS = 30
"""How long a service with a shutdown timeout of 1 s may take to stop, generously; the model hangs for an hour."""


def test_a_lost_device_needs_a_restart() -> None:
    model = Moody()
    with run_server(model) as running:
        model.mood = RuntimeError("CUDA error: an illegal memory access was encountered")
        assert running.predict(encoded(sample_image())).status_code == 503
        assert len(model.batches) == 1  # neither halved nor tested
        for answer in (ready(running), live(running)):
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert "illegal memory access" in answer.json()["detail"]
        assert "Restart" in live(running).json()["detail"]
        assert running.metric("moleflow_live") == 0


def test_hanging_while_loading_needs_a_restart() -> None:
    class Hanging(DummyDetector):
        def warm_up(self, batch_size: int = 1) -> None:
            assert self.gate.wait(120)

    model = Hanging()
    model.gate.clear()
    with run_server(model, wait=False, batch_timeout_seconds=0.5, load_timeout_seconds=0.1) as running:
        assert eventually(lambda: live(running).status_code == 503)
        assert "Loading" in live(running).json()["detail"]
        model.gate.set()
        assert eventually(lambda: ready(running).status_code == 200)


def test_a_service_that_needs_a_restart_exits_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(DummyDetector):
        def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
            raise RuntimeError("CUDA error: unspecified launch failure")

    def lose(url: str, _: Predictor) -> None:
        headers = {"content-type": "image/png"}
        threading.Thread(
            target=httpx.post, args=(url + "/predict",), kwargs={"content": WHITE, "headers": headers}
        ).start()

    monkeypatch.setattr("moleflow.service.api.app.load_predictor", lambda settings: Lost())
    monkeypatch.setattr("moleflow.service.engine.engine.UNRECOVERABLE_GRACE_SECONDS", 0.2)
    settings = Settings(checkpoint="dummy", port=0, log_level="critical", batch_timeout_seconds=1)
    with pytest.raises(NotLiveError, match="unspecified launch failure"):
        serve(settings, on_ready=lose)


def test_a_model_that_cannot_be_loaded_needs_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(DummyDetector):
        def warm_up(self, batch_size: int = 1) -> None:
            raise StopIteration

    with run_server(Broken(), wait=False) as running:
        assert eventually(lambda: live(running).status_code == 503)
        assert "could not be loaded" in ready(running).json()["detail"]


def test_a_device_found_lost_by_the_self_test_needs_a_restart() -> None:
    class Late(DummyDetector):
        def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
            self.batches.append(len(images))
            lost = len(self.batches) > 1
            raise RuntimeError(f"CUDA error: {'unspecified launch failure' if lost else 'unknown error'}")

    with run_server(Late()) as running:
        assert running.predict(encoded(sample_image())).status_code == 503
        assert "unspecified launch failure" in live(running).json()["detail"]


def test_a_dead_inference_thread_needs_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*arguments: Any, **options: Any) -> Any:
        raise SystemExit

    with run_server() as running:
        monkeypatch.setattr("moleflow.service.engine.worker.judge", end)
        for _ in range(2):
            assert running.predict(encoded(sample_image())).status_code == 503
        assert "thread has died" in live(running).json()["detail"]
        assert ready(running).status_code == 503


def test_a_process_whose_model_hangs_stops_in_time_and_logs_stacks(processes: Processes) -> None:
    model: dict[str, Any] = {"before": HANGS, "load": "lambda settings: Hanging()"}
    with (
        serve_in_a_process(processes, **model, log_level="critical", shutdown_timeout_seconds=1) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        url, headers = running.line(0), {"content-type": "image/png"}
        pool.submit(
            httpx.post, url + "/predict", content=encoded(sample_image()), headers=headers, timeout=STOP_SECONDS
        )
        assert running.line(1) == "working"
        running.kill(signal.SIGINT)
        done = running.finish(STOP_SECONDS)
        assert done.status == 1
        assert "in hang" in done.stderr


def test_a_process_that_hangs_while_loading_stops_in_time(processes: Processes) -> None:
    settings: dict[str, Any] = {"log_level": "critical", "shutdown_timeout_seconds": 1}
    with serve_in_a_process(processes, before=HANGS, load="load", **settings) as running:
        assert running.line(0) == "loading"
        running.kill(signal.SIGTERM)
        done = running.finish(STOP_SECONDS)
        assert done.status != 0
        assert "in hang" in done.stderr
