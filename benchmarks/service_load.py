"""How fast is the service beside its own parts called in one process, and does its memory stay flat?

    python benchmarks/service_load.py --images DIR [--checkpoint FILE] [--memory-checkpoint FILE] [--output FILE.json]

A real ``moleflow serve`` is driven by wrk (Debian, Ubuntu: ``apt install wrk``; without it, by ``plain_load.py``) on
the same machine, at each concurrency in turn. Beside it, round by round, the same images go through decode, predict
and encode in this process, in batches as large as the service could make them (the concurrency, at most
MAX_BATCH_SIZE), one step after another. Answers are JSON with the anomaly map as PNG at the image's size, the
default. Without a checkpoint, one of the MAIN configuration with random weights is made. Then requests are sent to a
service of ``--memory-checkpoint`` (unless given, the same checkpoint) until it has answered ``--requests``, and its
resident memory is read all along.

The gates: HTTP carries at least 0.9 times the images a second of the process, as the median over the rounds; at
concurrency 1, 95 % of the images wait for the model no longer than the configured wait; and from the first fifth of
the requests to the last tenth, memory grows by at most 2 %. The exit status is 1 unless all pass.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pipeline import images_per_second
from random_checkpoint import write_random_checkpoint
from result_files import positive, write_result
from running_service import RunningService, ServiceError
from service_memory import watch_memory
from wrk import Load, LoadError, drive, find_wrk, generator

from moleflow.model.detector import Detector
from moleflow.model.errors import MoLEFlowError
from moleflow.model.images.decode import SUFFIXES
from moleflow.model.runtime.threads import THREAD_POLICY, configure_threads, helper_threads, restart_prepared
from moleflow.service.responses.render import ResponseFormat
from moleflow.service.settings import Settings

LEAST_RATIO = 0.9
"""Of the process's images a second, at least this share over HTTP."""

MOST_GROWTH = 0.02
"""Of the memory after the warm-up, at most this share more at the end."""

STAGES = ("decode", "queue", "inference", "encode")


def measure(options: argparse.Namespace, checkpoint: Path, rgb_images: Sequence[Path]) -> list[dict[str, Any]]:
    """Throughput and latency at each concurrency: service and process in turn, round after round."""
    program, detector = find_wrk(options.wrk), Detector.load(checkpoint, plugin=options.plugin, unknown_limit=0)
    files, form = [image.read_bytes() for image in rgb_images], ResponseFormat(map_encoding=options.map)
    path, most = f"/predict?map={options.map}", int(_default("max_batch_size"))
    rows = []
    with RunningService(checkpoint, *_plugin(options)) as service:
        for concurrency in options.concurrency:
            batch = min(concurrency, most)
            detector.warm_up(batch)
            drive(program, service.url, path, rgb_images, concurrency, 1 + options.seconds // 4)
            loads, own = [], []
            for number in range(options.rounds):
                print(f"concurrency {concurrency}: round {number + 1} of {options.rounds} …", file=sys.stderr)
                for side in ("process", "http") if number % 2 == 0 else ("http", "process"):
                    if side == "process":
                        own.append(images_per_second(detector, files, form, batch, options.seconds))
                    else:
                        loads.append(drive(program, service.url, path, rgb_images, concurrency, options.seconds))
            rows.append(summary(concurrency, batch, loads, own))
    return rows


def summary(concurrency: int, batch: int, loads: Sequence[Load], own: Sequence[float]) -> dict[str, Any]:
    """One concurrency's figures: rates are medians over the rounds, times are over all responses."""
    rates = [load.per_second() for load in loads]
    ratios = [over_http / alone for over_http, alone in zip(rates, own, strict=True)]
    times = {name: np.concatenate([load[name] for load in loads]) for name in ("latency", *STAGES)}
    return {
        "concurrency": concurrency,
        "batch": batch,
        "responses": sum(map(len, loads)),
        "http_per_second": median(rates),
        "process_per_second": median(own),
        "ratio": median(ratios),
        "ratios": ratios,
        "latency_ms": _percentiles(times["latency"]),
        "stages_ms": {name: _percentiles(times[name]) for name in STAGES},
    }


def judge(rows: Sequence[dict[str, Any]], memory: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Each gate with its value, its limit, and whether it passed."""
    gates = [
        _gate(f"HTTP / process at concurrency {row['concurrency']}", row["ratio"], LEAST_RATIO, at_least=True)
        for row in rows
    ]
    alone = [row["stages_ms"]["queue"]["p95"] for row in rows if row["concurrency"] == 1]
    wait = float(_default("max_batch_wait_ms"))
    gates += [_gate("queue at concurrency 1, p95, ms", value, wait, at_least=False) for value in alone]
    if memory:
        name = f"growth of memory over {memory['requests']:,} requests"
        gates.append(_gate(name, memory["growth"], MOST_GROWTH, at_least=False))
    return gates


def _gate(name: str, value: float, limit: float, *, at_least: bool) -> dict[str, Any]:
    passed = value >= limit if at_least else value <= limit
    return {"name": name, "value": value, "limit": limit, "sense": "≥" if at_least else "≤", "passed": bool(passed)}


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['date']}, {result['processors']} processors, {result['threads']} threads, {result['precision']}; "
        f"{len(result['rgb_images'])} images, map={result['map']}; load before {result['load_before']}; "
        f"requests from {result['generator']}",
        "",
        "| concurrency | HTTP, images/s | process, images/s (batch) | ratio (rounds) | p50 ms | p95 ms | p99 ms "
        "| queue p50 / p95 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["load"]:
        latency, queue = row["latency_ms"], row["stages_ms"]["queue"]
        lines.append(
            f"| {row['concurrency']} | {row['http_per_second']:.2f} | {row['process_per_second']:.2f} ({row['batch']}) "
            f"| {row['ratio']:.2f} ({min(row['ratios']):.2f}…{max(row['ratios']):.2f}) | {latency['p50']:.0f} "
            f"| {latency['p95']:.0f} | {latency['p99']:.0f} | {queue['p50']:.2f} / {queue['p95']:.2f} |"
        )
    if memory := result["memory"]:
        sizes = " → ".join(f"{memory[name] / 2**20:.0f}" for name in ("at_start", "after_warm_up", "at_end"))
        lines += [
            "",
            f"Resident memory over {memory['requests']:,} requests (start → after warm-up → end): {sizes} MiB, at most "
            f"{memory['highest'] / 2**20:.0f}.",
        ]
    lines += ["", "| gate | value | limit | |", "|---|---|---|---|"]
    lines += [
        f"| {gate['name']} | {gate['value']:.3f} | {gate['sense']} {gate['limit']:g} "
        f"| {'PASS' if gate['passed'] else 'FAIL'} |"
        for gate in result["gates"]
    ]
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    rgb_images = sorted(path for path in options.rgb_images.glob("*") if path.suffix.lower() in SUFFIXES)
    if not rgb_images:
        raise LoadError(f"{options.rgb_images} holds no images; name a folder with some (--images).")
    load_before, threads = round(os.getloadavg()[0], 2), configure_threads()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors")
        rows = measure(options, checkpoint, rgb_images)
        watched = options.memory_checkpoint or checkpoint
        memory = None
        if options.requests:
            with RunningService(watched, *_plugin(options)) as service:
                path = f"/predict?map={options.map}"
                memory = watch_memory(
                    service, find_wrk(options.wrk), path, rgb_images, options.requests, options.memory_seconds
                )
        precision = Detector.load(checkpoint, plugin=options.plugin).precision
    return {
        "date": time.strftime("%Y-%m-%d"),
        "generator": generator(find_wrk(options.wrk)),
        "processors": len(os.sched_getaffinity(0)),
        "threads": threads,
        "helper_threads": helper_threads(),
        "environment": {name: os.environ.get(name) for name in THREAD_POLICY},
        "precision": precision,
        "load_before": load_before,
        "checkpoint": options.checkpoint.name if options.checkpoint else "MAIN, random weights",
        "images": [path.name for path in rgb_images],
        "map": options.map,
        "seconds": options.seconds,
        "load": rows,
        "memory": memory,
        "gates": judge(rows, memory),
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)} | {"max": float(values.max())}


def _default(name: str) -> Any:
    """A setting of the service as it is started here: from the environment, else its default."""
    return getattr(Settings(checkpoint=Path("any")), name)


def _plugin(options: argparse.Namespace) -> list[str]:
    return ["--plugin", options.plugin] if options.plugin else []


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder whose images are sent")
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--memory-checkpoint", type=Path, help="for the requests that memory is watched over")
    parser.add_argument("--plugin", help="module that registers the checkpoint's backbone with timm")
    parser.add_argument("--concurrency", type=positive, action="append", help="default: 1, 4 and 16")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=positive, default=10, help="of each side in a round")
    parser.add_argument("--requests", type=int, default=10_000, help="to watch memory over; 0: not at all")
    parser.add_argument("--memory-seconds", type=positive, default=20, help="between two counts of these requests")
    parser.add_argument("--map", choices=("none", "png", "npy"), default="png", help="the map in the answers")
    parser.add_argument("--wrk", help="the load generator's program")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 6 s, and 300 requests: a first look")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    options = parser.parse_args(arguments)
    options.concurrency = options.concurrency or [1, 4, 16]
    if options.quick:
        options.rounds, options.seconds, options.memory_seconds = 2, 6, 6
        options.requests = min(options.requests, 300)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 when a gate fails, 2 on an error that the user can mend."""
    options = parse(arguments)
    try:
        result = run(options)
    except (LoadError, ServiceError, MoLEFlowError) as error:
        print(f"service_load: {error}", file=sys.stderr)
        return 2
    text = markdown(result)
    if options.output:
        write_result(options.output, result, text)
    print(text)
    return 0 if all(gate["passed"] for gate in result["gates"]) else 1


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
