"""A real server with the dummy model, in a thread."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from dummy import DummyDetector
from forked import Process, Processes
from sample_images import encoded, sample_image

from moleflow.service.api.app import create_app
from moleflow.service.listening import bind
from moleflow.service.server import make_server
from moleflow.service.settings import Settings

PATIENCE = 120
"""Timeout of tests in seconds; generous, for busy machines."""


class Running:
    """A server in a thread, its dummy model, and a client."""

    def __init__(self, detector: Any, settings: Settings, server: Any, port: int) -> None:
        self.detector, self.settings, self.server, self.port = detector, settings, server, port
        self.thread = threading.Thread(target=lambda: None)  # that of the server, once it runs
        self.loops: list[asyncio.AbstractEventLoop] = []  # that of the server, once it is ready
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def predict(self, data: bytes, headers: dict[str, str] | None = None, **query: str) -> httpx.Response:
        """Send an image as the raw body."""
        content_type = {"content-type": "application/octet-stream"}
        return self.client.post("/predict", content=data, params=query, headers=content_type | (headers or {}))

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample in /metrics; 0 if there is none yet."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.client.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and wanted <= set(rest.rstrip("}").split(",")):
                return float(value)
        return 0.0

    def connect(self) -> socket.socket:
        """A raw connection, for requests that HTTP clients do not send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def hold(self) -> threading.Thread:
        """Keep the model busy with one request until its gate is set."""
        self.detector.gate.clear()
        self.detector.entered.clear()
        thread = threading.Thread(target=self.predict, args=(encoded(sample_image()),))
        thread.start()
        assert self.detector.entered.wait(PATIENCE)
        return thread


def request_head(length: int | str, content_type: str = "image/png", query: str = "") -> bytes:
    """The head of a request to /predict with this Content-Length."""
    return (
        f"POST /predict{query} HTTP/1.1\r\nHost: test\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, and body of the next response on a raw connection."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def free_port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true; returns whether it became so in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


_SERVE_THE_DUMMY = """
import resource, sys, threading
sys.path.insert(0, {here!r})
import moleflow.service.api.app
from dummy import DummyDetector
from moleflow.service.server import serve
from moleflow.service.settings import Settings
{before}
def tell(url, predictor):
    print(url, flush=True)
    threading.Thread(target=when_ready).start()

def when_ready():
    {when_ready}

if {descriptors}:
    resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))
moleflow.service.api.app.load_predictor = {load}
serve(Settings(checkpoint="dummy", port=0, **{settings}), on_ready=tell)
"""


@contextmanager
def serve_in_a_process(
    processes: Processes,
    *,
    descriptors: int = 0,
    before: str = "",
    load: str = "lambda settings: DummyDetector()",
    when_ready: str = "pass",
    **settings: Any,
) -> Iterator[Process]:
    """A process of its own that serves the dummy. Its first line is its URL, unless the code below prints before.

    It may open so many ``descriptors`` (unless 0), runs the code ``before`` the service starts and ``when_ready``, and
    gets its model from the function ``load``.
    """
    code = _SERVE_THE_DUMMY.format(
        here=str(Path(__file__).parent),
        before=before,
        load=load,
        when_ready=when_ready,
        descriptors=descriptors,
        settings=settings,
    )
    process = processes.start(code)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def run_server(detector: DummyDetector | None = None, *, wait: bool = True, **settings: Any) -> Iterator[Running]:
    """Run the service on a free port, by default with the dummy model and one decoder process."""
    model = detector or DummyDetector()
    try:
        with _serving(model, wait=wait, **{"checkpoint": "dummy.safetensors"} | settings) as running:
            yield running
    finally:
        model.gate.set()


@contextmanager
def serve_checkpoint(checkpoint: Path, **settings: Any) -> Iterator[Running]:
    """Serve a checkpoint of the tiny network, in float32 on the CPU. The file is looked at often."""
    small: dict[str, Any] = {"device": "cpu", "precision": "fp32", "reload_seconds": 0.02}
    with _serving(None, checkpoint=checkpoint, **small | settings) as running:
        yield running


@contextmanager
def _serving(model: DummyDetector | None, *, wait: bool = True, **settings: Any) -> Iterator[Running]:
    usual: dict[str, Any] = {"log_level": "critical", "cpu_workers": 1}
    chosen = Settings(**usual | settings)
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    def note_ready(_: object) -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()

    app = create_app(chosen, model, on_ready=note_ready)
    listener = bind("127.0.0.1", 0)
    listeners = [listener] if chosen.admin_port is None else [listener, bind("127.0.0.1", chosen.admin_port)]
    server = make_server(app, chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": listeners})
    thread.start()
    running = Running(model, chosen, server, listener.getsockname()[1])
    running.thread, running.loops = thread, loops
    try:
        if wait:
            assert ready.wait(PATIENCE)
        yield running
    finally:
        if model is not None:
            model.gate.set()
        running.client.close()
        server.should_exit = True
        thread.join(PATIENCE)
        for each in listeners:
            each.close()
        assert not thread.is_alive()
