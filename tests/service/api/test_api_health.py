"""Liveness and readiness, and how the service recovers from failures."""

import errno
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
from running import Running, eventually, run_server, serve_in_a_process
from sample_images import encoded, sample_image

import moleflow.service.api.app
from moleflow.service.decoding.pool import DecoderPool
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


class Moody(DummyDetector):
    """Raises ``mood`` unless it is ``None``."""

    mood: BaseException | None = None

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
        if self.mood is not None:
            self.batches.append(len(images))
            raise self.mood
        return super().predict(images, tasks)


def ready(running: Running) -> httpx.Response:
    return running.client.get("/health/ready")


def live(running: Running) -> httpx.Response:
    return running.client.get("/health/live")


def test_a_model_that_always_fails_makes_the_service_not_ready_with_a_reason() -> None:
    model = Moody()
    with run_server(model) as running:
        model.mood = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")
        failed = running.predict(encoded(sample_image()))
        assert failed.status_code == 503
        assert int(failed.headers["retry-after"]) >= 1
        answer = ready(running)
        assert answer.status_code == 503
        assert "CUBLAS_STATUS_EXECUTION_FAILED" in answer.json()["detail"]
        assert live(running).status_code == 200
        assert running.metric("moleflow_ready") == 0
        assert running.metric("moleflow_live") == 1
        calls = len(model.batches)
        refused = running.predict(encoded(sample_image()))
        assert refused.status_code == 503
        assert len(model.batches) <= calls + 1  # at most a self-test: the image itself was not tried


def test_a_service_whose_model_recovers_is_ready_again_without_traffic() -> None:
    model = Moody()
    with run_server(model) as running:
        model.mood = MemoryError()
        assert running.predict(encoded(sample_image())).status_code == 503
        assert ready(running).status_code == 503
        model.mood = None
        assert eventually(lambda: ready(running).status_code == 200)
        assert running.predict(encoded(sample_image())).status_code == 200


@pytest.mark.parametrize("mood", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_a_system_exit_from_the_model_is_treated_like_any_failure(mood: BaseException) -> None:
    model = Moody()
    with run_server(model) as running:
        model.mood = mood
        assert running.predict(encoded(sample_image())).status_code == 503
        assert ready(running).status_code == 503
        model.mood = None
        assert eventually(lambda: ready(running).status_code == 200)


def test_an_image_that_the_model_fails_on_affects_neither_readiness_nor_its_batch() -> None:
    with run_server() as running, ThreadPoolExecutor(6) as pool:
        holder = running.hold()
        fine = [pool.submit(running.predict, encoded(sample_image()), map="none") for _ in range(5)]
        bad = pool.submit(running.predict, WHITE)
        assert eventually(lambda: running.metric("moleflow_queue_length") == 6)
        running.detector.gate.set()
        assert [answer.result().status_code for answer in fine] == [200] * 5
        assert bad.result().status_code == 500
        assert ready(running).status_code == 200
        assert running.predict(WHITE).status_code == 500  # the blank image of the self-test succeeds
        assert ready(running).status_code == 200
        holder.join()


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


def test_a_hanging_batch_fails_waiting_requests_and_new_ones() -> None:
    with run_server(batch_timeout_seconds=0.5, max_batch_size=2) as running, ThreadPoolExecutor(4) as pool:
        holder = running.hold()
        behind = [pool.submit(running.predict, encoded(sample_image())) for _ in range(4)]
        for answer in behind:
            assert answer.result().status_code == 503
            assert int(answer.result().headers["retry-after"]) >= 1
            assert "0.5 s" in answer.result().json()["detail"]
        holder.join()
        assert ready(running).status_code == 503
        assert running.predict(encoded(sample_image())).status_code == 503
        assert running.metric("moleflow_batch_age_seconds") >= 0.5
        assert eventually(lambda: live(running).status_code == 503)  # after twice the timeout
        running.detector.gate.set()
        assert eventually(lambda: ready(running).status_code == 200)
        assert live(running).status_code == 200
        assert running.predict(encoded(sample_image())).status_code == 200


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


def test_warming_up_uses_a_smaller_batch_if_memory_is_short() -> None:
    class Small(DummyDetector):
        def warm_up(self, batch_size: int = 1) -> None:
            if batch_size > 2:
                raise RuntimeError("CUDA out of memory.")
            super().warm_up(batch_size)

    with run_server(Small(), max_batch_size=8) as running:
        assert running.detector.warmed_up == [1, 2]


def test_a_batch_that_exceeds_memory_is_split_and_counted() -> None:
    class Small(DummyDetector):
        def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list[Any]:
            if len(images) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().predict(images, tasks)

    with run_server(Small()) as running, ThreadPoolExecutor(8) as pool:
        holder = running.hold()
        answers = [pool.submit(running.predict, encoded(sample_image()), map="none") for _ in range(8)]
        assert eventually(lambda: running.metric("moleflow_queue_length") == 8)
        running.detector.gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 8
        holder.join()
        assert running.metric("moleflow_out_of_memory_total") == 3  # eight at once, and both fours
        assert ready(running).status_code == 200


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


def test_a_service_that_cannot_decode_is_not_ready_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True
    original = DecoderPool._start_process

    def start_process(decoders: DecoderPool) -> Any:
        if broken:
            raise OSError(errno.EAGAIN, "no more processes")
        return original(decoders)

    with run_server(batch_timeout_seconds=2) as running:
        assert running.predict(encoded(sample_image())).status_code == 200
        monkeypatch.setattr(DecoderPool, "_start_process", start_process)
        for decoder in list(running.server.config.app.state.engine._decoders._processes):
            decoder._process.kill()
        assert running.predict(encoded(sample_image())).status_code in {429, 503}
        assert eventually(lambda: ready(running).status_code == 503)
        assert "decoded" in ready(running).json()["detail"]
        broken = False
        assert eventually(lambda: ready(running).status_code == 200)
        assert running.predict(encoded(sample_image())).status_code == 200


def test_a_service_whose_ready_callback_fails_is_ready() -> None:
    def tell(_: Predictor) -> None:
        raise BrokenPipeError

    from moleflow.service.server import bind, make_server

    settings = Settings(checkpoint="dummy.safetensors", log_level="critical")
    listener = bind("127.0.0.1", 0)
    server = make_server(moleflow.service.api.app.create_app(settings, DummyDetector(), on_ready=tell), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/health/ready"
        assert eventually(lambda: httpx.get(url, timeout=120).status_code == 200)
    finally:
        server.should_exit = True
        thread.join(120)
        listener.close()
    assert not thread.is_alive()


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
