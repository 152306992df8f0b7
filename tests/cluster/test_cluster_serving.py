"""Serving by Ray Serve: replicas on two nodes answer as the service does, reload by themselves, and outlive a node."""

import functools
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from forked import ROOT
from running import eventually, free_port
from sample_images import encoded
from tiny_model import PLUGIN, product_image, tiny_checkpoint
from two_nodes import PATIENCE, Command, TwoNodes

from moleflow.model.detector import Detector
from moleflow.model.store.editing import rename_product

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

IMAGE = product_image(1, 50)

ENOUGH = 20
"""Answers in a row; more than the turns in which one of two replicas could be left out by chance."""


LEARNS_SECONDS = 3
"""Time in which Serve's proxies learn which replica has a product."""


class Served:
    """Two replicas behind one address."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def predict(self, image: np.ndarray = IMAGE, **headers: str) -> httpx.Response:
        headers["content-type"] = "application/octet-stream"
        return self._client.post("/predict", params={"map": "none"}, content=encoded(image), headers=headers)

    def answers(self) -> list[dict[str, Any]]:
        found = [self.predict() for _ in range(ENOUGH)]
        assert {each.status_code for each in found} == {200}, found[0].text
        return [each.json() for each in found]

    def ready(self) -> bool:
        try:
            return self._client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def configuration(tmp_path: Path) -> dict[str, Any]:
    """``docker/serve.yaml`` with a tiny checkpoint and one replica for each of two nodes."""
    found = yaml.safe_load((ROOT / "docker" / "serve.yaml").read_text())
    found |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": free_port()}}
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors").path
    found["applications"][0]["args"] = {
        "checkpoint": str(checkpoint),
        "plugin": str(PLUGIN),
        "unknown_limit": "0",
        "cpu_workers": "1",
    }
    (deployment,) = found["applications"][0]["deployments"]
    deployment["autoscaling_config"]["max_replicas"] = 2
    deployment["ray_actor_options"]["num_cpus"] = 1
    return found


@pytest.fixture
def client(configuration: dict[str, Any]) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{configuration['http_options']['port']}"
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        yield client


def replicas(printed: str) -> list[str]:
    """The replica of each prediction, as Serve logs it."""
    return re.findall(r"moleflow_moleflow (\w+) \S+ -- POST /predict", printed)


def test_replicas_answer_alike_reload_by_themselves_and_outlive_a_killed_node(
    two_nodes: TwoNodes,
    command: Callable[..., Command],
    configuration: dict[str, Any],
    client: httpx.Client,
    tmp_path: Path,
) -> None:
    path = tmp_path / "factory.safetensors"
    (expected,) = Detector.load(path, device="cpu", unknown_limit=0).predict([IMAGE])
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(configuration))
    serve = "-c", "from ray.serve.scripts import cli; cli()"
    running = command("run", tmp_path / "serve.yaml", "--address", two_nodes.address, program=serve)
    served = Served(client)
    running.wait_for(lambda printed: served.ready())
    running.wait_for(lambda printed: served.predict().status_code == 200 and len({*replicas(printed)}) == 2)
    for answer in served.answers():
        assert (answer["task"]["name"], answer["score"]) == ("nut", pytest.approx(expected.score))

    digest = rename_product(path, "nut", "wing nut").info.digest
    assert eventually(lambda: all(each["checkpoint"]["digest"] == digest for each in served.answers()))
    assert {answer["task"]["name"] for answer in served.answers()} == {"wing nut"}

    named = functools.partial(served.predict, product_image(0, 50), serve_multiplexed_model_id="bolt")
    assert named().json()["task"]["name"] == "bolt"
    time.sleep(LEARNS_SECONDS)
    before = len(replicas(running.printed))
    assert {named().status_code for _ in range(ENOUGH)} == {200}
    running.wait_for(lambda printed: len(replicas(printed)) >= before + ENOUGH)
    assert len({*replicas(running.printed)[before:]}) == 1

    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(served.predict().status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1)
    two_nodes.kill_second()
    before = len(statuses)
    assert eventually(lambda: len(statuses) > before + 5 * ENOUGH and statuses[-ENOUGH:] == [200] * ENOUGH)
    stop.set()
    asking.join()
    # Only what was on the killed node is lost: with one request at a time, one for each time it was chosen.
    lost = [status for status in statuses if status != 200]
    assert len(lost) < ENOUGH, statuses
    two_nodes.replace_second()
    running.process.send_signal(signal.SIGINT)
    running.finish()
