"""Can anybody stop, blind or fool the service?

    python -m benchmarks hostile_load [--minutes 30] [--inputs 10000] [--output FILE.json]

A real service with a small model learned from noise runs in a process of its own, on this machine's loopback only.
Good clients send good images, others send hostile and damaged ones (``images.py``), attackers do what no client should
(``requests.py``, ``connections.py``), and an operator stops, kills and damages parts of the service (``operator.py``).
Meanwhile health and metrics are requested every 100 ms. Every request is accounted for.

The gates: no request hangs; every answer equals the one given without load, bit by bit; no 5xx, loss or refusal that
was not injected; all inputs sent; the event loop never late by more than 50 ms, except while the process is stopped;
no probe slower than a second; memory of all processes within what the settings allow; as many descriptors as at the
start; and a shutdown in time. The lateness of a clock in an idle process shows how much of a stall was the machine's.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.client import LostError
from benchmarks.hostile.images import good_images
from benchmarks.hostile.ledger import Ledger
from benchmarks.hostile.operator import Operator, Service
from benchmarks.hostile.parts import encoded
from benchmarks.hostile.questions import Question, ask_question, canonical, expected_answers, questions
from benchmarks.hostile.report import judge, markdown
from benchmarks.hostile.roles import roles, run_role, start_role
from benchmarks.hostile.target import Target
from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import describe
from benchmarks.shared.process_tree import descriptors, resident_bytes
from benchmarks.shared.random_checkpoint import write_random_checkpoint
from moleflow.service.settings import Settings

PATIENCE_SECONDS = 90.0
"""A request without answer after this time hangs; a hang of the model, a restart and a queue fit into it."""

SAMPLING_SECONDS = 0.5

QUIET_SECONDS = 10.0
"""Pause between the end of the load and the last check of the service."""

SETTINGS: dict[str, Any] = {
    "upload_timeout_seconds": 10,
    "header_timeout_seconds": 5,
    "send_timeout_seconds": 5,
    "batch_timeout_seconds": 6,
    "lame_duck_seconds": 1,
    "shutdown_timeout_seconds": 15,
}
"""Shorter than the defaults, so that each timeout happens many times."""

PRODUCTS = 3


class Watch:
    """Samples the memory of all the service's processes, and the lateness of this process's clock, in threads."""

    def __init__(self, service: Service) -> None:
        self._service, self._ended = service, threading.Event()
        self.memory: list[int] = []
        self.latest = 0.0
        self._threads = [threading.Thread(target=work) for work in (self._sample, self._tick)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLING_SECONDS):
            self.memory.append(resident_bytes(self._service.pid))

    def _tick(self) -> None:
        while not self._ended.is_set():
            due = time.monotonic() + 0.005
            time.sleep(0.005)
            self.latest = max(self.latest, time.monotonic() - due)


def target_of(service: Service, settings: Settings) -> Target:
    """What the attackers know of the service."""
    large = np.random.default_rng(3).integers(0, 255, (1500, 2000, 3), np.uint8)
    # The longest of the times allowed for a head, a body, and taking an answer.
    closing = max(settings.header_timeout_seconds, settings.send_timeout_seconds, settings.upload_timeout_seconds)
    return Target(
        service.port,
        good_images()["png"],
        encoded(large, "JPEG"),
        patience=PATIENCE_SECONDS,
        stall_seconds=closing + 1.0,
        closing_seconds=closing + 10.0,
        max_upload_bytes=settings.max_upload_bytes,
    )


async def drive(options: argparse.Namespace, service: Service, checkpoint: Path, settings: Settings) -> dict[str, Any]:
    """Run the whole load; the service is stopped at the end."""
    answers = await expected_answers(service.port)
    checks = [
        Question(f"noise{number}", good_images()["png"], f"?map=none&task=noise{number}") for number in range(PRODUCTS)
    ]
    checked = answers | {check.name: canonical(await ask_question(service.port, check)) for check in checks}
    target = target_of(service, settings)
    rest_descriptors, rest_bytes = descriptors(service.pid), resident_bytes(service.pid)
    stop_seconds = settings.shutdown_timeout_seconds + settings.lame_duck_seconds + 10.0
    ledger = Ledger()
    operator = Operator(service, checkpoint, ledger, checks, checked, stop_seconds)
    started, seconds = time.monotonic(), options.minutes * 60.0
    watch = Watch(service)
    try:
        context = multiprocessing.get_context("spawn")
        over = context.Event()
        chosen = roles(target, options.seed, seconds, options.inputs, answers)
        with ProcessPoolExecutor(len(chosen), context, start_role, (over,)) as pool:
            futures = {role.name: pool.submit(run_role, role) for role in chosen}

            def is_over() -> bool:
                return time.monotonic() >= started + seconds and futures["inputs"].done()

            try:
                await operator.run(is_over, options.interval)
            finally:
                over.set()
            for future in futures.values():
                ledger.merge(await asyncio.wrap_future(future))
        load_seconds = time.monotonic() - started
        await asyncio.sleep(QUIET_SECONDS)
        last = await after_the_load(service.port, answers)
        end_descriptors, end_bytes = descriptors(service.pid), resident_bytes(service.pid)
    finally:
        watch.end()
    return {
        "seconds": load_seconds,
        "ledger": ledger,
        "disturbances": operator.disturbances,
        "restarts": operator.restarts,
        "memory": {"rest": rest_bytes, "most": max(watch.memory), "end": end_bytes},
        "descriptors": {"rest": rest_descriptors, "end": end_descriptors},
        "clock_late_seconds": watch.latest,
        "wrong_after": last,
        "stop_seconds": await asyncio.to_thread(service.stop, stop_seconds),
        "stop_limit": stop_seconds,
        "stalls": stalls_of(service),
    }


async def after_the_load(port: int, answers: dict[str, bytes]) -> list[str]:
    """The good images that do not get the same answer as before the load."""
    wrong = []
    for question in questions():
        try:
            reply = await ask_question(port, question)
        except LostError as error:
            wrong.append(f"{question.name}: {error}")
            continue
        if reply.status != 200 or canonical(reply) != answers[question.name]:
            wrong.append(f"{question.name}: {reply.status}")
    return wrong


def stalls_of(service: Service) -> list[dict[str, float]]:
    """The event loop's delays."""
    return [json.loads(line) for line in service.stalls.read_text(encoding="utf-8").splitlines()]


def start(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Gate]]:
    """Make a checkpoint, start a service with it, and drive the load."""
    checkpoint = write_random_checkpoint(folder / "served.safetensors", PRODUCTS, "small")
    settings = Settings(checkpoint=checkpoint, **SETTINGS)
    service = Service(checkpoint, folder, SETTINGS)
    service.start()
    try:
        found = asyncio.run(drive(options, service, checkpoint, settings))
    finally:
        if service.is_alive:
            service.stop(settings.shutdown_timeout_seconds)
        if options.log:
            options.log.write_text(service.log(), encoding="utf-8")
    result, gates = judge(found, settings, options.inputs)
    return result | {"machine": describe(), "seed": options.seed}, gates


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("hostile_load", __doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--inputs", type=positive, default=10_000, help="hostile and damaged images")
    parser.add_argument("--interval", type=float, default=10, help="seconds between two disturbances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file for the service's log")
    add_output(parser)
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result, gates = start(options, Path(folder))
    except LostError as error:
        raise BenchmarkError(str(error)) from error
    return finish(options.output, result, markdown(result), gates)
