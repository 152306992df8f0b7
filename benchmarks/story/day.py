"""The steps of a day: teach, inspect, mark false alarms, recalibrate, ignore an area, rename, restart, remove."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.running_service import RunningService
from benchmarks.shared.subprocesses import environment, module_command
from benchmarks.story.load import Inspection, answers
from moleflow.client import Client
from moleflow.service.responses.schemas import PredictionResponse

__all__ = ["Day", "Taught"]

PATIENCE_SECONDS = 60.0

STRICT = 0.2
"""False-alarm rate at which feedback is given, so that there are false alarms to mark."""

LEFT_HALF = "0,0 0.5,0 0.5,1 0,1"


@dataclass(frozen=True, slots=True)
class Taught:
    """The product that is taught: good images to learn, and good and defective ones to inspect."""

    name: str
    learn: Sequence[Path]
    good: Sequence[Path]
    defective: Sequence[Path]


@dataclass(slots=True)
class Day:
    """One service on one checkpoint. ``inspected`` are images of the product that it knows already.

    ``plugin`` registers its backbone; ``epochs`` are those of the job.
    """

    checkpoint: Path
    folder: Path
    inspected: Sequence[Path]
    taught: Taught
    plugin: Path | None = None
    epochs: int | None = None
    alone_seconds: float = 5.0
    found: dict[str, Any] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _service: RunningService | None = None
    _port: int = 0

    def play(self, rounds: int = 1, until: float = 0.0) -> dict[str, Any]:
        """The figures, after so many rounds, and more until the time ``until``. Raises ``BenchmarkError``."""
        self.found = {"rounds": 0, "seconds": {}, "alarms": [], "resident_MB": []}
        with self._stack:
            self._start()
            with self._client() as client:
                expected = answers(client, self.inspected)
            inspection = Inspection(self._url, expected)
            with inspection.running():
                time.sleep(self.alone_seconds)
                while self.found["rounds"] < rounds or time.time() < until:
                    with self._client() as client:
                        self._round(client, inspection)
                    self.found["rounds"] += 1
            with self._client() as client:
                again = answers(client, self.inspected)
            inspection.different += [f"at the end: {path.name}" for path in expected if again[path] != expected[path]]
        self.found |= {
            "answers": sum(map(len, inspection.seconds.values())) + len(expected),
            "different": inspection.different,
            "failed": inspection.failed,
            "latency": dict(inspection.seconds),
        }
        return self.found

    def _round(self, client: Client, inspection: Inspection) -> None:
        name, renamed = self.taught.name, f"{self.taught.name}-2"
        with inspection.during("while images are taught"):
            self._timed("teach", lambda: _all_kept(client.teach(name, self.taught.learn)))
        with inspection.during("beside a training job"):
            self._timed("train", lambda: client.train(name, epochs=self.epochs))
        self._check(name in self._served(client), f"{name} is not served after its job")
        self._timed("inspect", lambda: [client.predict(path) for path in self._images()])
        self._timed("feedback", lambda: self._mark(client))
        self._timed("recalibrate", lambda: self._recalibrate(client))
        self._timed("ignore an area", lambda: self._ignore(client))
        self._timed("rename", lambda: self._change("PATCH", name, json={"name": renamed}))
        self._check(renamed in self._served(client), f"{name} was not renamed")
        with inspection.during("while the service restarts"):
            self._timed("restart", self._restart)
        self._check(renamed in self._served(client), f"{renamed} is gone after a restart")
        self._timed("remove", lambda: self._change("DELETE", renamed))
        self._check(renamed not in self._served(client), f"{renamed} was not removed")
        assert self._service is not None
        self.found["resident_MB"].append(round(self._service.resident_bytes() / 1e6))

    def _mark(self, client: Client) -> None:
        """Tell of every good image that it is good, and of every defective one that alarms that it is not."""
        for path in self.taught.good:
            client.feedback(_id(client.predict(path, task=self.taught.name)), "good")
        for path in self.taught.defective:
            answer = client.predict(path, task=self.taught.name, false_alarm_rate=STRICT)
            if answer.is_anomalous:
                client.feedback(_id(answer), "defect")

    def _recalibrate(self, client: Client) -> None:
        """Fit the thresholds to the images of the feedback too; at a strict rate, fewer of them alarm afterwards."""
        before, digest = self._alarms(client), client.tasks().checkpoint.digest
        words = ["recalibrate", self.checkpoint, self.folder / "feedback", "--product", self.taught.name, *self._plugin]
        done = subprocess.run(module_command("moleflow", *words), env=environment(), capture_output=True, text=True)
        self._check(done.returncode == 0, f"recalibrate failed: {done.stderr.strip()}")
        self._wait(lambda: client.tasks().checkpoint.digest != digest, "the recalibrated checkpoint is not served")
        after = self._alarms(client)
        self.found["alarms"].append([before, after, len(self.taught.good)])
        self._check(after <= before, f"{after} good images alarm after recalibration, {before} before")

    def _alarms(self, client: Client) -> int:
        name = self.taught.name
        return sum(
            bool(client.predict(path, task=name, false_alarm_rate=STRICT).is_anomalous) for path in self.taught.good
        )

    def _ignore(self, client: Client) -> None:
        """Ignore the left half: no score rises."""
        name, images = self.taught.name, self._images()
        before = [client.predict(path, task=name).score or 0.0 for path in images]
        corners = [[float(number) for number in corner.split(",")] for corner in LEFT_HALF.split()]
        self._change("PUT", f"{name}/area", json={"ignore": [corners]})
        after = [client.predict(path, task=name).score or 0.0 for path in images]
        self._check(all(new <= old for new, old in zip(after, before, strict=True)), "a score rose within an area")

    def _change(self, method: str, path: str, **options: Any) -> None:
        done = httpx.request(method, f"{self._url}/tasks/{path}", timeout=PATIENCE_SECONDS, **options)
        self._check(done.status_code == 200, f"{method} /tasks/{path}: {done.status_code} {done.text[:300]}")

    def _start(self) -> None:
        words: list[object] = [self.checkpoint, *self._plugin, "--teaching", self.folder / "teaching"]
        words += ["--feedback", self.folder / "feedback", "--log-level", "warning"]
        self._service = self._stack.enter_context(RunningService(*words, port=self._port))
        self._port = int(self._service.url.rpartition(":")[2])

    def _restart(self) -> None:
        assert self._service is not None
        self._service.__exit__()
        self._start()

    @property
    def _plugin(self) -> list[object]:
        return [] if self.plugin is None else ["--plugin", self.plugin]

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _client(self) -> Client:
        return Client(self._url, deadline=None)

    def _images(self) -> list[Path]:
        return [*self.taught.good, *self.taught.defective]

    def _served(self, client: Client) -> list[str]:
        return [each.name for each in client.tasks().tasks]

    def _timed(self, name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        self.found["seconds"].setdefault(name, []).append(round(time.perf_counter() - started, 2))
        return result

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self._check(time.monotonic() < deadline, otherwise)
            time.sleep(0.1)

    @staticmethod
    def _check(holds: bool, otherwise: str) -> None:
        if not holds:
            raise BenchmarkError(f"{otherwise}.")


def _id(answer: PredictionResponse) -> str:
    if answer.id is None:
        raise BenchmarkError("an answer has no id.")
    return answer.id


def _all_kept(results: Sequence[Any]) -> None:
    bad = [each for each in results if each.error is not None]
    if bad:
        raise BenchmarkError(f"an image was not kept: {bad[0].error}")
