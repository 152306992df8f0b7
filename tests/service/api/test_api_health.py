"""Readiness, and how the service recovers from failures."""

import errno
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from dummy import DummyDetector
from health import Moody, live, ready
from running import eventually, run_server
from sample_images import encoded, sample_image

import moleflow.service.api.app
from moleflow.service.decoding.pool import DecoderPool
from moleflow.service.engine.predictor import Predictor
from moleflow.service.settings import Settings

WHITE = encoded(np.full((60, 90, 3), 255, np.uint8))


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

    from moleflow.service.listening import bind
    from moleflow.service.server import make_server

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
