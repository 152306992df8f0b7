"""Does a service that is used for hours, well and badly, stay as it was?

    python -m benchmarks soak [--images DIR] [--checkpoint FILE] [--minutes 60] [--output FILE.json]

A real ``moleflow serve`` gets a mixture of requests from several clients: single images, several in one request, the
Open Inference Protocol, deadlines that are too short, files that are no images, and clients that leave without waiting
for their answer. Meanwhile its memory and its open files are counted. Without a checkpoint, one of the MAIN
configuration with random weights is made; without images, noise is sent.

The gates: no answer has another status than its kind of request should get; a second after the last request nothing is
in progress or waiting; from the end of the first fifth of the time to its last tenth memory grows by at most 2 %; and
no more files are open at the end than at the start. It is also shown how many images took a place in a batch and got no
answer: those that were in a running batch when they were given up.
"""

import argparse
import http.client
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.process_tree import descriptors
from benchmarks.shared.random_checkpoint import write_random_checkpoint
from benchmarks.shared.running_service import RunningService
from benchmarks.speed.pipeline import image_files
from benchmarks.speed.service_memory import flatness
from moleflow.training.report.markdown import markdown_table

MOST_GROWTH = 0.02
"""Of memory, as in ``service_load``."""

SETTLING_SECONDS = 1.0
"""After the last request, before what is left over is counted."""

SAMPLING_SECONDS = 0.1

SHORT_MS = (1, 60)
"""Deadlines that are too short for many images, in milliseconds: before decoding, in the queue, and in a batch."""

_NOISE_SIDE = 300
_PATIENCE_SECONDS = 120


@dataclass(slots=True)
class Tally:
    """What all clients saw: answers by kind of request and status."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    unexpected: Counter[tuple[str, int]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, status: int, expected: Sequence[int]) -> None:
        with self.lock:
            self.answers[kind, status] += 1
            if status not in expected:
                self.unexpected[kind, status] += 1


class Client:
    """One client, which sends one request after another."""

    def __init__(self, url: str, images: Sequence[bytes], tally: Tally, seed: int) -> None:
        self._address, self._images, self._tally = urlsplit(url).netloc, images, tally
        self._random = random.Random(seed)
        self._connection = http.client.HTTPConnection(self._address, timeout=_PATIENCE_SECONDS)
        self._kinds: list[tuple[Callable[[], None], int]] = [
            (self.single, 8),
            (self.several, 1),
            (self.tensors, 2),
            (self.hurried, 4),
            (self.broken, 1),
            (self.gone, 4),
        ]

    def run(self, deadline: float) -> None:
        """Send requests until the time ``deadline``."""
        kinds, weights = zip(*self._kinds, strict=True)
        while time.monotonic() < deadline:
            self._random.choices(kinds, weights)[0]()
        self._connection.close()

    def single(self) -> None:
        self._send("single", "/predict?map=none", self._image(), {"Content-Type": "image/png"}, (200, 429))

    def several(self) -> None:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = b"".join(head + self._image() + b"\r\n" for _ in range(4)) + b"--b--\r\n"
        content_type = "multipart/form-data; boundary=b"
        self._send("several", "/predict/batch", body, {"Content-Type": content_type}, (200, 429))

    def tensors(self) -> None:
        files = [self._image(), self._image()]
        binary = b"".join(len(each).to_bytes(4, "little") + each for each in files)
        given = {"name": "image", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
        text = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        self._send("tensors", "/v2/models/moleflow/infer", text + binary, headers, (200, 429))

    def hurried(self) -> None:
        headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": str(self._random.randint(*SHORT_MS))}
        self._send("hurried", "/predict?map=none", self._image(), headers, (200, 429, 504))

    def broken(self) -> None:
        self._send("broken", "/predict", self._image()[::-1], {"Content-Type": "image/png"}, (415, 429))

    def gone(self) -> None:
        """Leave some time after the request was sent, at once or in the middle of the work."""
        body = self._image()
        head = f"POST /predict HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: image/png\r\n"
        host, _, port = self._address.rpartition(":")
        with socket.create_connection((host, int(port)), _PATIENCE_SECONDS) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(self._random.choice((0.0, 0.005, 0.03)))
        self._tally.add("gone", 0, (0,))

    def _image(self) -> bytes:
        return self._random.choice(self._images)

    def _send(self, kind: str, path: str, body: bytes, headers: dict[str, str], expected: Sequence[int]) -> None:
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        answer.read()
        self._tally.add(kind, answer.status, expected)


def soak(
    url: str, pid: int, images: Sequence[bytes], clients: int, seconds: float, resident: Callable[[], int]
) -> dict[str, Any]:
    """Use the service at ``url``, the process ``pid``, for so long; ``resident`` returns its memory in bytes."""
    tally, files = Tally(), descriptors(pid)
    deadline = time.monotonic() + seconds
    threads = [
        threading.Thread(target=Client(url, images, tally, seed).run, args=(deadline,)) for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    sizes = [resident()]
    while any(thread.is_alive() for thread in threads):
        time.sleep(SAMPLING_SECONDS)
        sizes.append(resident())
    time.sleep(SETTLING_SECONDS)
    numbers = read_metrics(url)
    left = {
        name: numbers[f"moleflow_{name}"] for name in ("requests_in_progress", "queue_length", "uploads_in_progress")
    }
    return {
        "requests": sum(tally.answers.values()),
        "answers": [[kind, status, count] for (kind, status), count in sorted(tally.answers.items())],
        "unexpected": [[kind, status, count] for (kind, status), count in sorted(tally.unexpected.items())],
        "left": left,
        "in_batches": numbers["moleflow_batch_size_sum"],
        "predicted": numbers["moleflow_predictions_total"],
        "given_up": numbers["moleflow_given_up_total"],
        "memory": flatness(range(len(sizes)), sizes),
        "open_files": [files, descriptors(pid)],
    }


def read_metrics(url: str) -> Counter[str]:
    """The metrics of a service, each summed over its labels."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_PATIENCE_SECONDS)
    connection.request("GET", "/metrics")
    found: Counter[str] = Counter()
    for line in connection.getresponse().read().decode().splitlines():
        series, _, value = line.rpartition(" ")
        if not line.startswith("#"):
            found[series.partition("{")[0]] += float(value)  # type: ignore[assignment]
    connection.close()
    return found


def judge(result: dict[str, Any]) -> list[Gate]:
    """The gates on statuses, on what is left over, on memory and on open files."""
    left, growth = sum(result["left"].values()), result["memory"]["growth"]
    unexpected, (before, after) = sum(count for *_, count in result["unexpected"]), result["open_files"]
    return [
        Gate("answers with an unexpected status", str(unexpected), "0", unexpected == 0),
        Gate("requests and images left over", f"{left:g}", "0", left == 0),
        Gate("growth of memory", f"{growth:.1%}", f"≤ {MOST_GROWTH:.0%}", growth <= MOST_GROWTH),
        Gate("open files at the end", str(after), f"≤ {before}", after <= before),
    ]


def markdown(result: dict[str, Any]) -> str:
    """The answers, and what became of the images that were given up."""
    wasted = result["in_batches"] - result["predicted"]
    lines = [
        f"{result['date']}, {result['requests']:,} requests in {result['minutes']:g} minutes from {result['clients']} "
        "clients",
        "",
        markdown_table(
            ["request", "status", "count"], [[kind, status or "–", n] for kind, status, n in result["answers"]]
        ),
        "",
        f"{result['given_up']:,.0f} requests or images were given up; {wasted:,.0f} of {result['in_batches']:,.0f} "
        "images in batches got no answer.",
    ]
    return "\n".join(lines)


def noise(count: int = 4) -> list[bytes]:
    """Images of noise as PNG files."""
    generator, files = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            pixels = generator.integers(0, 256, (_NOISE_SIDE, _NOISE_SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path := Path(folder) / f"{number}.png")
            files.append(path.read_bytes())
    return files


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from a command line."""
    parser = make_parser("soak", __doc__)
    parser.add_argument("--images", type=Path, help="folder whose images are sent; default: noise")
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=positive, default=8)
    add_output(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    options = parse(arguments)
    images = [path.read_bytes() for path in image_files(options.images)] if options.images else noise()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors")
        with RunningService(checkpoint, "--log-level", "warning") as service:
            print(f"soak: {options.minutes:g} minutes …", file=sys.stderr)
            seconds = 60 * options.minutes
            result = soak(service.url, service.pid, images, options.clients, seconds, service.resident_bytes)
    result |= {"date": time.strftime("%Y-%m-%d"), "minutes": options.minutes, "clients": options.clients}
    return finish(options.output, result, markdown(result), judge(result))
