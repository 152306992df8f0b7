"""What does the threads' way of waiting cost, alone and beside a busy process of somebody else?

    python benchmarks/threads.py [--checkpoint FILE] [--busy 1] [--rounds 3] [--output FILE.json]

Two processes take turns at the same work: one with the runtimes' own defaults, whose idle threads spin, one with the
policy of ``moleflow.model.runtime.threads``. Each judges one image at a time (milliseconds an image), first with the
machine to itself, then beside ``--busy`` processes that do nothing but count; and makes anomaly maps with pauses
between them, as a service does (milliseconds of processor time a map, what its threads spin away in the pauses
included).
"""

import argparse
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

from result_files import ratios, spread, write_result

from moleflow.model.runtime.threads import THREAD_POLICY, available_processors, configure_threads

ROOT = Path(__file__).resolve().parents[1]

MAPS, PAUSE_SECONDS, MAP_SIDE = 20, 0.02, 1024
"""How many maps are made at a time, the pause after each, and their size in pixels."""

BUSY = "while True: pass"

POLICIES = {"default": dict.fromkeys(THREAD_POLICY, ""), "passive": THREAD_POLICY}
"""Variables of each process; an empty one is as if it were not set."""


def work(checkpoint: Path, calls: int, requests: IO[str]) -> None:
    """The worker: for each line of ``requests``, time the calls and print what they took."""
    import numpy as np

    from moleflow.model.detector import Detector
    from moleflow.model.verdict.scoring import pixel_map

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
    """A worker with one of the policies, ready."""
    variables = {name: value for name, value in os.environ.items() if name not in THREAD_POLICY}
    variables |= {name: value for name, value in POLICIES[policy].items() if value}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, __file__, "--worker", "--checkpoint", str(checkpoint), "--calls", str(calls)]
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        ask(process, None)
        yield process


def ask(process: "subprocess.Popen[str]", request: str | None) -> str:
    """Send a line, unless there is none to send, and return the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    if request is not None:
        process.stdin.write(f"{request}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"threads: the worker ended with status {process.wait()}; see above.")
    return answer


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that count, during the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(checkpoint: Path, count: int, rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Figures of each policy, one a round; in each, they take turns alone and beside the busy processes."""
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
    """The result for people."""
    lines = [
        f"{result['processors']} processors, load before {result['load_before']}, {result['busy']} busy beside; "
        "medians over the rounds (least–greatest)",
        "",
        "| waiting | image alone, ms | image beside, ms | map alone, processor ms |",
        "|---|---|---|---|",
    ]
    digits = {"image_alone_ms": 0, "image_busy_ms": 0, "map_alone_cpu_ms": 1}
    policies = result["policies"]
    for policy, row in policies.items():
        lines.append(f"| {policy} | {' | '.join(spread(row[name], digits[name]) for name in digits)} |")
    cells = [spread(ratios(policies["passive"][name], policies["default"][name]), 2) for name in digits]
    lines.append(f"| passive by default | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--busy", type=int, default=1, help="processes that count beside the work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=5, help="images of one turn")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.checkpoint, options.calls, sys.stdin)
        return
    load_before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint
        if checkpoint is None:
            from random_checkpoint import write_random_checkpoint

            checkpoint = write_random_checkpoint(Path(folder) / "random.safetensors")
        policies = measure(checkpoint, options.busy, options.rounds, options.calls)
    result = {
        "processors": available_processors(), "load_before": load_before, "busy": options.busy, "policies": policies,
    }  # fmt: skip
    text = markdown(result)
    if options.output:
        write_result(options.output, result, text)
    print(text)


if __name__ == "__main__":
    main()
