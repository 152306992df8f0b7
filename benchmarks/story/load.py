"""Inspecting one product without a pause, and comparing every answer, bit by bit, with the one given before."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moleflow.client import Client, ClientError
from moleflow.service.responses.schemas import PredictionResponse

__all__ = ["Inspection", "answer_of", "answers"]

DEADLINE_SECONDS = 120.0
"""For one answer, with all attempts: a restart of the service fits into it."""


def answer_of(response: PredictionResponse) -> dict[str, Any]:
    """What of an answer depends on the image and its product alone."""
    return response.model_dump(
        mode="json", include={"task", "score", "p_value", "threshold", "verdict", "map", "regions"}
    )


def answers(client: Client, images: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The answer to each image, with its map as float32."""
    return {path: answer_of(client.predict(path, map="npy", map_size="model")) for path in images}


class Inspection:
    """Threads that send the images in turn until the end; ``expected`` are the right answers.

    ``seconds`` holds the latencies by phase, ``different`` and ``failed`` what went wrong.
    """

    def __init__(self, url: str, expected: Mapping[Path, dict[str, Any]], concurrency: int = 2) -> None:
        self._url, self._expected, self._concurrency = url, dict(expected), concurrency
        self._ended, self._lock = threading.Event(), threading.Lock()
        self.phase = "alone"
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.different: list[str] = []
        self.failed: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inspect while the block runs."""
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self._concurrency)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Latencies of what begins inside belong to ``phase``."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def _run(self, number: int) -> None:
        paths = list(self._expected)
        with Client(self._url, deadline=DEADLINE_SECONDS, retries=1000) as client:
            while not self._ended.is_set():
                path, phase, started = paths[number % len(paths)], self.phase, time.perf_counter()
                number += 1
                try:
                    found = answer_of(client.predict(path, map="npy", map_size="model"))
                except ClientError as error:
                    with self._lock:
                        self.failed.append(f"{phase}: {error}")
                    continue
                with self._lock:
                    self.seconds[phase].append(time.perf_counter() - started)
                    if found != self._expected[path]:
                        self.different.append(f"{phase}: {path.name}")
