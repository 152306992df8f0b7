"""The operator of the hostile load: starts, disturbs and restarts the service."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.hostile.client import LostError, Reply, ask
from benchmarks.hostile.ledger import FAILED, HUNG, LOST, WRONG, Disturbance, Ledger
from benchmarks.hostile.parts import encoded
from benchmarks.hostile.questions import Question, ask_question, canonical
from benchmarks.hostile.server import HANG_SECONDS, MARKERS
from benchmarks.hostile.target import BYTES
from benchmarks.shared.process_tree import children
from benchmarks.shared.subprocesses import environment, module_command

__all__ = ["Operator", "Service", "marker_image"]

START_SECONDS = 300.0

RECOVERY_SECONDS = 90.0
"""Time for the service to answer correctly again after a disturbance, restarted where it asks for that. A damaged
expert is not read again for half a minute."""

STOPPED_SECONDS = 3.0
"""How long a process stays stopped and the checkpoint stays damaged."""

BURST = 5
"""Number of failing images in a row."""


def marker_image(name: str) -> bytes:
    """An image that makes the model fail."""
    return encoded(np.full((64, 64, 3), MARKERS[name], np.uint8), "PNG")


class Service:
    """A service in a process of its own, on the same port after every restart."""

    def __init__(self, checkpoint: Path, folder: Path, settings: dict[str, object]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = int(taken.getsockname()[1])
        self.stalls, self._log = folder / "stalls.jsonl", folder / "service.log"
        chosen = {"checkpoint": checkpoint, "port": self.port, "log_level": "warning", "unknown_limit": 0} | settings
        settings_given = (f"{name}={value}" for name, value in chosen.items())
        self._command = module_command("benchmarks.hostile.server", self.stalls, *settings_given)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the service and wait until it takes images."""
        with self._log.open("ab") as log:
            at = log.tell()
            self._process = subprocess.Popen(self._command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while b"ready at" not in self._log.read_bytes()[at:]:
            if not self.is_alive or time.monotonic() > deadline:
                raise LostError(f"the service does not start: {self.log()[-2000:]}")
            time.sleep(0.05)

    def stop(self, most_seconds: float) -> float | None:
        """Shut the service down; returns the seconds it took, ``None`` when it had to be killed."""
        assert self._process is not None
        start = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(most_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        return time.monotonic() - start

    def log(self) -> str:
        """The service's whole log."""
        return self._log.read_text(encoding="utf-8", errors="replace")


class Operator:
    """Disturbs a service and makes sure that it recovers."""

    def __init__(
        self,
        service: Service,
        checkpoint: Path,
        ledger: Ledger,
        checks: Sequence[Question],
        answers: dict[str, bytes],
        stop_seconds: float,
    ) -> None:
        self._service, self._checkpoint, self._ledger = service, checkpoint, ledger
        self._checks, self._answers, self._stop_seconds = checks, answers, stop_seconds
        self._original = checkpoint.read_bytes()
        self.disturbances: list[Disturbance] = []
        self.restarts = 0

    async def run(self, over: Callable[[], bool], interval: float) -> None:
        """Run one disturbance after another until the load is over; each at least once."""
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self.fail,
            self.stop_worker,
            self.short_of_memory,
            self.kill_worker,
            self.not_finite,
            self.stop_service,
            self.truncate_checkpoint,
            self.fail,
            self.replace_checkpoint,
            self.hang,
            self.overwrite_checkpoint,
            self.exit,
        )
        turn = 0
        while turn < len(steps) or not over():
            step = steps[turn % len(steps)]
            print(f"disturbance {turn + 1}: {step.__name__} …", file=sys.stderr)
            await step()
            turn += 1
            if not over():
                await asyncio.sleep(interval)

    async def fail(self) -> None:
        """Send a few images that the model fails on."""
        with self._disturbing("fail") as marks:
            for _ in range(BURST):
                await self._send_marker("fail")
            await self._recover(marks)

    async def not_finite(self) -> None:
        """Send an image whose patch map is not finite."""
        with self._disturbing("not finite") as marks:
            await self._send_marker("not finite")
            await self._recover(marks)

    async def short_of_memory(self) -> None:
        """The model has memory for single images but not for a batch; no client should notice."""
        for _ in range(BURST):
            reply = await self._ask_marker("out of memory")
            if reply is not None:
                self._ledger.judge("short of memory", "marker", reply, time.monotonic(), expected={429})

    async def hang(self) -> None:
        """Send an image on which the model hangs."""
        with self._disturbing("hang") as marks:
            await self._send_marker("hang", may_be_right=True)
            await self._recover(marks)

    async def exit(self) -> None:
        """Send an image on which the process exits."""
        with self._disturbing("exit") as marks:
            await self._send_marker("exit")
            await self._recover(marks)

    async def stop_service(self) -> None:
        """Stop the service's process for a while."""
        await self._stop_and_continue("service stopped", self._service.pid)

    async def stop_worker(self) -> None:
        """Stop one of the service's child processes for a while."""
        for pid in children(self._service.pid)[:1]:
            await self._stop_and_continue("worker stopped", pid)

    async def kill_worker(self) -> None:
        """Kill one of the service's child processes."""
        for pid in children(self._service.pid)[:1]:
            with self._disturbing("worker killed") as marks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await self._recover(marks)

    async def truncate_checkpoint(self) -> None:
        """Cut the checkpoint in half for a while."""
        with self._disturbing("checkpoint truncated") as marks:
            os.truncate(self._checkpoint, len(self._original) // 2)
            await asyncio.sleep(STOPPED_SECONDS)
            self._checkpoint.write_bytes(self._original)
            await self._recover(marks)

    async def overwrite_checkpoint(self) -> None:
        """Fill the checkpoint with random bytes for a while."""
        with self._disturbing("checkpoint overwritten") as marks:
            with self._checkpoint.open("r+b") as file:
                file.write(os.urandom(len(self._original)))
            await asyncio.sleep(STOPPED_SECONDS)
            self._checkpoint.write_bytes(self._original)
            await self._recover(marks)

    async def replace_checkpoint(self) -> None:
        """Give the checkpoint's name to another file; the service must go on with the file it opened."""
        kept, other = self._checkpoint.with_suffix(".kept"), self._checkpoint.with_suffix(".other")
        kept.hardlink_to(self._checkpoint)
        other.write_bytes(b"another file")
        other.replace(self._checkpoint)
        start = time.monotonic()
        for check in self._checks:
            if not await self._is_right(check):
                self._ledger.trouble("operator", check.name, WRONG, "after the checkpoint was replaced", start)
        kept.replace(self._checkpoint)

    async def _stop_and_continue(self, kind: str, pid: int) -> None:
        with self._disturbing(kind) as marks, contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(STOPPED_SECONDS)
            finally:
                os.kill(pid, signal.SIGCONT)
            await self._recover(marks)

    @contextmanager
    def _disturbing(self, kind: str) -> Iterator[list[float]]:
        """Record a disturbance; it lasts until the time added to the list, or to the end of the block."""
        start, marks = time.monotonic(), list[float]()
        yield marks
        self.disturbances.append(Disturbance(kind, start, marks[-1] if marks else time.monotonic()))

    async def _recover(self, marks: list[float]) -> None:
        """Wait until every product is answered correctly; restart the service when its liveness probe fails."""
        start, wrong = time.monotonic(), list(self._checks)
        while time.monotonic() < start + RECOVERY_SECONDS:
            wrong = [check for check in wrong if not await self._is_right(check)]
            if not wrong:
                marks.append(time.monotonic())
                return
            if not await self._lives():
                await self._restart()
                wrong = list(self._checks)
            await asyncio.sleep(0.2)
        names = ", ".join(check.name for check in wrong)
        self._ledger.trouble("operator", names, FAILED, f"not correct again after {RECOVERY_SECONDS:g} s", start)
        await self._restart()
        marks.append(time.monotonic())

    async def _restart(self) -> None:
        """Do what an orchestrator does when ``/health/live`` fails."""
        start = time.monotonic()
        print("restarting the service …", file=sys.stderr)
        if self._service.is_alive and await asyncio.to_thread(self._service.stop, self._stop_seconds) is None:
            self._ledger.trouble("operator", "SIGTERM", HUNG, f"not stopped after {self._stop_seconds:g} s", start)
        await asyncio.to_thread(self._service.start)
        self.restarts += 1

    async def _lives(self) -> bool:
        try:
            async with asyncio.timeout(10):
                return (await ask(self._service.port, "GET", "/health/live")).status == 200
        except (LostError, TimeoutError):
            return False

    async def _is_right(self, check: Question) -> bool:
        try:
            async with asyncio.timeout(HANG_SECONDS + 10):
                reply = await ask_question(self._service.port, check)
        except (LostError, TimeoutError):
            return False
        return reply.status == 200 and canonical(reply) == self._answers[check.name]

    async def _ask_marker(self, name: str) -> Reply | None:
        """Send a marker; ``None`` when the connection was lost."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(HANG_SECONDS + RECOVERY_SECONDS):
                return await ask(self._service.port, "POST", "/predict?map=none", marker_image(name), BYTES)
        except TimeoutError:
            self._ledger.trouble("markers", name, HUNG, "no answer", start)
        except LostError as error:
            self._ledger.trouble("markers", name, LOST, str(error), start)
        return None

    async def _send_marker(self, name: str, *, may_be_right: bool = False) -> None:
        """Send a marker, which should fail as it says."""
        start = time.monotonic()
        reply = await self._ask_marker(name)
        if reply is not None:
            right = (200,) if may_be_right else ()
            self._ledger.judge("markers", name, reply, start, expected={429}, right=right, fails=True)
