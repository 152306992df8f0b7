"""What does the way in which threads wait cost, alone and next to a busy process?

    python -m benchmarks threads [--checkpoint FILE] [--busy 1] [--rounds 3] [--output FILE.json]

Two processes take turns at the same work: one with the runtimes' defaults, whose idle threads spin, and one with the
policy of ``moleflow.model.runtime.threads``. Each predicts one image at a time (milliseconds per image), first alone,
then next to ``--busy`` processes that only count. Then it makes anomaly maps with pauses between them, as a service
does (milliseconds of processor time per map, including what idle threads spin away in the pauses).
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any

from benchmarks.shared.command import add_output, finish, make_parser
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.statistics import ratios, spread
from benchmarks.shared.subprocesses import environment, module_command
from moleflow.model.runtime.threads import THREAD_POLICY, available_processors, configure_threads
from moleflow.training.report.markdown import markdown_table

COMMAND = module_command("benchmarks.speed.threads")
"""Starts a worker; it reads ``CHECKPOINT CALLS`` from the command line."""

MAPS, PAUSE_SECONDS, MAP_SIDE = 20, 0.02, 1024
"""Number of maps in a turn, the pause after each, and their size in pixels."""

BUSY = "while True: pass"

POLICIES = {"default": dict.fromkeys(THREAD_POLICY, ""), "passive": THREAD_POLICY}
"""Environment variables of each process; an empty one is left out."""


def work(checkpoint: Path, calls: int, requests: IO[str]) -> None:
    """The worker: for each line of ``requests``, time the calls and print the durations as JSON."""
    import numpy as np

    from moleflow.model.detector import Detector
    from moleflow.model.verdict.maps import pixel_map

    configure_threads()
    detector = Detector.load(checkpoint, device="cpu", unknown_limit=0)
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    detector.predict([image])
    grid = np.zeros((28, 28), np.float32)
    pixel_map(grid, detector.preprocessing.image_size, MAP_SIDE, MAP_SIDE)
    print("ready", flush=True)
    for _ in requests:
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            detector.predict([image])
            times.append((time.perf_counter() - started) * 1000)
        started = time.process_time()
        for _ in range(MAPS):
            pixel_map(grid, detector.preprocessing.image_size, MAP_SIDE, MAP_SIDE)
            time.sleep(PAUSE_SECONDS)
        print(json.dumps([median(times), (time.process_time() - started) * 1000 / MAPS]), flush=True)


@contextlib.contextmanager
def worker(policy: str, checkpoint: Path, calls: int) -> Iterator["subprocess.Popen[str]"]:
    """A worker with one of the policies, ready for requests."""
    variables = {name: value for name, value in environment().items() if name not in THREAD_POLICY}
    variables |= {name: value for name, value in POLICIES[policy].items() if value}
    command = [*COMMAND, str(checkpoint), str(calls)]
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ask(process, None)
        yield process


def ask(process: "subprocess.Popen[str]", request: str | None) -> str:
    """Send a line, unless ``request`` is ``None``, and return the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    if request is not None:
        process.stdin.write(f"{request}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise BenchmarkError(f"the worker ended with status {process.wait()}; see its output above.")
    return answer


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run ``count`` processes that only count during the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(checkpoint: Path, count: int, rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Figures of each policy, one per round; the policies take turns, alone and next to the busy processes."""
    found: dict[str, dict[str, list[float]]] = {policy: {} for policy in POLICIES}
    with contextlib.ExitStack() as stack:
        workers = {policy: stack.enter_context(worker(policy, checkpoint, calls)) for policy in POLICIES}
        for _ in range(rounds):
            for beside, others in (("alone", 0), ("busy", count)):
                for policy, process in workers.items():
                    with busy(others):
                        image, a_map = json.loads(ask(process, "time"))
                    found[policy].setdefault(f"image_{beside}_ms", []).append(image)
                    found[policy].setdefault(f"map_{beside}_cpu_ms", []).append(a_map)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The table of policies and their ratio."""
    digits = {"image_alone_ms": 0, "image_busy_ms": 0, "map_alone_cpu_ms": 1}
    policies = result["policies"]
    rows = [[policy, *(spread(row[name], digits[name]) for name in digits)] for policy, row in policies.items()]
    ratio = [spread(ratios(policies["passive"][name], policies["default"][name]), 2) for name in digits]
    headings = ["waiting", "image alone, ms", "image next to busy, ms", "map alone, processor ms"]
    return (
        f"{result['processors']} processors, load before {result['load_before']}, {result['busy']} busy processes; "
        "medians over the rounds (minimum–maximum)\n\n"
    ) + markdown_table(headings, [*rows, ["passive / default", *ratio]])


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("threads", __doc__)
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--busy", type=int, default=1, help="processes that count meanwhile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=5, help="images of one turn")
    add_output(parser)
    options = parser.parse_args(arguments)
    load_before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint
        if checkpoint is None:
            from benchmarks.shared.random_checkpoint import write_random_checkpoint

            checkpoint = write_random_checkpoint(Path(folder) / "random.safetensors")
        policies = measure(checkpoint, options.busy, options.rounds, options.calls)
    result = {
        "processors": available_processors(),
        "load_before": load_before,
        "busy": options.busy,
        "policies": policies,
    }
    return finish(options.output, result, markdown(result))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.stdin)
