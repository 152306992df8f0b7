"""From start to stop: loading, failing to load, and completing accepted requests."""

import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from dummy import DummyDetector
from forked import Processes
from running import eventually, run_server, serve_in_a_process
from sample_images import encoded, sample_image

from moleflow.model.errors import CheckpointNotFoundError, ConfigurationError
from moleflow.service.engine.predictor import Predictor
from moleflow.service.listening import bind
from moleflow.service.server import serve
from moleflow.service.settings import Settings

SLOW = """
import time

class Slow(DummyDetector):
    def predict(self, images, tasks=None):
        print("working", flush=True)
        time.sleep(1)
        return super().predict(images, tasks)
"""


class SlowToWarmUp(DummyDetector):
    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()

    def warm_up(self, batch_size: int = 1) -> None:
        assert self.may_go_on.wait(120)
        super().warm_up(batch_size)


def test_while_the_model_is_loading_the_service_is_live_but_not_ready() -> None:
    model = SlowToWarmUp()
    with run_server(model, wait=False) as service:
        try:
            assert eventually(lambda: service.client.get("/health/live").status_code == 200)
            for answer in (
                service.client.get("/health/ready"),
                service.client.get("/tasks"),
                service.client.get("/tasks/red"),
                service.predict(encoded(sample_image())),
            ):
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
                assert int(answer.headers["retry-after"]) >= 1
            assert service.metric("moleflow_ready") == 0
        finally:
            model.may_go_on.set()
        assert eventually(lambda: service.client.get("/health/ready").status_code == 200)


def test_the_model_is_warmed_up_for_one_image_and_for_a_full_batch() -> None:
    with run_server(max_batch_size=5) as service:
        assert service.detector.warmed_up == [1, 5]


def test_stopping_completes_accepted_requests_and_rejects_new_ones() -> None:
    with run_server(max_batch_size=1) as service, ThreadPoolExecutor(3) as pool:
        holder = service.hold()
        queued = [pool.submit(service.predict, encoded(sample_image())) for _ in range(3)]
        assert eventually(lambda: service.metric("moleflow_queue_length") == 3)
        service.server.should_exit = True

        def is_rejected() -> bool:
            try:
                httpx.get(service.url + "/health/live", timeout=5)
            except httpx.TransportError:
                return True
            return False

        assert eventually(is_rejected)
        service.detector.gate.set()
        assert [answer.result().status_code for answer in queued] == [200] * 3
        holder.join()


def test_a_process_completes_requests_before_it_stops(processes: Processes) -> None:
    model: dict[str, Any] = {"before": SLOW, "load": "lambda settings: Slow()"}
    with (
        serve_in_a_process(processes, **model, log_level="critical", lame_duck_seconds=0) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        url, headers = process.line(0), {"content-type": "image/png"}
        answer = pool.submit(
            httpx.post, url + "/predict", content=encoded(sample_image()), headers=headers, timeout=120
        )
        assert process.line(1) == "working"
        process.kill(signal.SIGTERM)
        assert answer.result().status_code == 200
        assert process.finish().status in {0, -signal.SIGTERM}


def test_ctrl_c_stops_the_service_cleanly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.service.api.app.load_predictor", lambda settings: DummyDetector())
    reported = []

    def interrupt(url: str, predictor: Predictor) -> None:
        reported.append((url, predictor.checkpoint.name))
        signal.raise_signal(signal.SIGINT)

    serve(Settings(checkpoint="dummy", port=0, log_level="critical"), on_ready=interrupt)
    ((url, name),) = reported
    assert url.startswith("http://127.0.0.1:")
    assert name == "dummy.safetensors"


def test_a_checkpoint_that_cannot_be_loaded_ends_the_service_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(settings: Settings) -> Predictor:
        raise CheckpointNotFoundError(f"There is no checkpoint at {settings.checkpoint}.")

    monkeypatch.setattr("moleflow.service.api.app.load_predictor", load)
    with pytest.raises(CheckpointNotFoundError, match=r"no\.safetensors"):
        serve(Settings(checkpoint="no.safetensors", port=0, log_level="critical"))


def test_a_plugin_that_exits_ends_the_service_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(settings: Settings) -> Predictor:
        sys.exit("plugin gave up")

    monkeypatch.setattr("moleflow.service.api.app.load_predictor", load)
    with pytest.raises(RuntimeError, match="plugin gave up"):
        serve(Settings(checkpoint="no.safetensors", port=0, log_level="critical"))


def test_a_port_in_use_is_an_error_with_advice() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"MOLEFLOW_PORT.*{port}.*choose another port"):
            serve(Settings(checkpoint="unused", port=port))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_of_another_machine_is_an_error_with_advice(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"MOLEFLOW_HOST.*0\.0\.0\.0"):
        bind(host, 0)


def test_a_port_can_be_reused_at_once() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            first.accept()[0].close()  # the side that closes first keeps the port in TIME_WAIT
    bind("127.0.0.1", port).close()
