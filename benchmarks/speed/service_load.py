"""How fast is the service compared with its own parts in one process, and does its memory stay flat?

    python -m benchmarks service_load --images DIR [--checkpoint FILE] [--memory-checkpoint FILE] [--output FILE.json]

A real ``moleflow serve`` is driven by wrk (Debian, Ubuntu: ``apt install wrk``; without it, by ``plain_load.py``) on
the same machine, at each concurrency in turn. In alternate turns, the same images are decoded, predicted and encoded
in this process, in batches as large as the service could make them (the concurrency, at most MAX_BATCH_SIZE), one
step after another. Answers are JSON with the anomaly map as PNG at the image's size, the default. Without a
checkpoint, one of the MAIN configuration with random weights is made. Then a service of ``--memory-checkpoint`` (the
same checkpoint by default) answers ``--requests`` requests while its resident memory is sampled.

The gates: the service answers at least 0.9 times as many images per second as the process, median over the rounds; at
concurrency 1, 95 % of the images wait for the model no longer than the configured wait; and from the end of the first
fifth of the requests to the last tenth, memory grows by at most 2 %.
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

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.random_checkpoint import write_random_checkpoint
from benchmarks.shared.running_service import RunningService
from benchmarks.speed.pipeline import image_files, images_per_second
from benchmarks.speed.service_memory import watch_memory
from benchmarks.speed.wrk import Load, drive, find_wrk, generator
from moleflow.model.detector import Detector
from moleflow.model.runtime.threads import THREAD_POLICY, configure_threads, helper_threads
from moleflow.service.responses.render import ResponseFormat
from moleflow.service.settings import Settings
from moleflow.training.report.markdown import markdown_table

LEAST_RATIO = 0.9
"""Images per second over HTTP, as a multiple of the process's."""

MOST_GROWTH = 0.02
"""Growth of the memory after the warm-up, as a fraction."""

STAGES = ("decode", "queue", "inference", "encode")


def measure(options: argparse.Namespace, checkpoint: Path, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Throughput and latency at each concurrency: service and process in turn in every round."""
    program, detector = find_wrk(options.wrk), Detector.load(checkpoint, plugin=options.plugin, unknown_limit=0)
    files, form = [image.read_bytes() for image in images], ResponseFormat(map_encoding=options.map)
    path, most = f"/predict?map={options.map}", int(_setting("max_batch_size"))
    rows = []
    with RunningService(checkpoint, *_plugin(options)) as service:
        for concurrency in options.concurrency:
            batch = min(concurrency, most)
            detector.warm_up(batch)
            drive(program, service.url, path, images, concurrency, 1 + options.seconds // 4)
            loads, own = [], []
            for number in range(options.rounds):
                print(f"concurrency {concurrency}: round {number + 1} of {options.rounds} …", file=sys.stderr)
                for side in ("process", "http") if number % 2 == 0 else ("http", "process"):
                    if side == "process":
                        own.append(images_per_second(detector, files, form, batch, options.seconds))
                    else:
                        loads.append(drive(program, service.url, path, images, concurrency, options.seconds))
            rows.append(summary(concurrency, batch, loads, own))
    return rows


def summary(concurrency: int, batch: int, loads: Sequence[Load], own: Sequence[float]) -> dict[str, Any]:
    """Figures of one concurrency: rates are medians over the rounds, times are of all responses."""
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


def judge(rows: Sequence[dict[str, Any]], memory: dict[str, Any] | None) -> list[Gate]:
    """The gates on throughput, on the queue of a lone client, and on memory."""
    gates = [
        Gate(
            f"HTTP / process at concurrency {row['concurrency']}",
            f"{row['ratio']:.3f}",
            f"≥ {LEAST_RATIO:g}",
            row["ratio"] >= LEAST_RATIO,
        )
        for row in rows
    ]
    wait = float(_setting("max_batch_wait_ms"))
    for queue in (row["stages_ms"]["queue"]["p95"] for row in rows if row["concurrency"] == 1):
        gates.append(Gate("queue at concurrency 1, p95, ms", f"{queue:.3f}", f"≤ {wait:g}", queue <= wait))
    if memory:
        name, growth = f"growth of memory over {memory['requests']:,} requests", memory["growth"]
        gates.append(Gate(name, f"{growth:.1%}", f"≤ {MOST_GROWTH:.0%}", growth <= MOST_GROWTH))
    return gates


def markdown(result: dict[str, Any]) -> str:
    """The settings, the table of concurrencies, and the memory."""
    headings = [
        "concurrency",
        "HTTP, images/s",
        "process, images/s (batch)",
        "ratio (rounds)",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "queue p50 / p95 ms",
    ]
    rows = []
    for row in result["load"]:
        latency, queue = row["latency_ms"], row["stages_ms"]["queue"]
        rows.append(
            [
                row["concurrency"],
                f"{row['http_per_second']:.2f}",
                f"{row['process_per_second']:.2f} ({row['batch']})",
                f"{row['ratio']:.2f} ({min(row['ratios']):.2f}–{max(row['ratios']):.2f})",
                f"{latency['p50']:.0f}",
                f"{latency['p95']:.0f}",
                f"{latency['p99']:.0f}",
                f"{queue['p50']:.2f} / {queue['p95']:.2f}",
            ]
        )
    lines = [
        f"{result['date']}, {result['processors']} processors, {result['threads']} threads, {result['precision']}; "
        f"{len(result['images'])} images, map={result['map']}; load before {result['load_before']}; "
        f"requests from {result['generator']}",
        "",
        markdown_table(headings, rows),
    ]
    if memory := result["memory"]:
        sizes = " → ".join(f"{memory[name] / 2**20:.0f}" for name in ("at_start", "after_warm_up", "at_end"))
        lines += [
            "",
            f"Resident memory over {memory['requests']:,} requests (start → after warm-up → end): {sizes} MiB; peak "
            f"{memory['highest'] / 2**20:.0f}.",
        ]
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    images = image_files(options.images)
    load_before, threads = round(os.getloadavg()[0], 2), configure_threads()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors")
        rows = measure(options, checkpoint, images)
        memory = None
        if options.requests:
            with RunningService(options.memory_checkpoint or checkpoint, *_plugin(options)) as service:
                memory = watch_memory(
                    service,
                    find_wrk(options.wrk),
                    f"/predict?map={options.map}",
                    images,
                    options.requests,
                    options.memory_seconds,
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
        "images": [path.name for path in images],
        "map": options.map,
        "seconds": options.seconds,
        "load": rows,
        "memory": memory,
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)} | {"max": float(values.max())}


def _setting(name: str) -> Any:
    """A setting of the service as it is started here: from the environment, or its default."""
    return getattr(Settings(checkpoint=Path("any")), name)


def _plugin(options: argparse.Namespace) -> list[str]:
    return ["--plugin", options.plugin] if options.plugin else []


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from a command line."""
    parser = make_parser("service_load", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder whose images are sent")
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--memory-checkpoint", type=Path, help="serve this one while memory is sampled")
    parser.add_argument("--plugin", help="module that registers the checkpoint's backbone with timm")
    parser.add_argument("--concurrency", type=positive, action="append", help="default: 1, 4 and 16")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=positive, default=10, help="per side and round")
    parser.add_argument("--requests", type=int, default=10_000, help="while memory is sampled; 0: skip")
    parser.add_argument("--memory-seconds", type=positive, default=20, help="between two counts of these requests")
    parser.add_argument("--map", choices=("none", "png", "npy"), default="png", help="the map in the answers")
    parser.add_argument("--wrk", help="path of wrk")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 6 s, and 300 requests: a first look")
    add_output(parser)
    options = parser.parse_args(arguments)
    options.concurrency = options.concurrency or [1, 4, 16]
    if options.quick:
        options.rounds, options.seconds, options.memory_seconds = 2, 6, 6
        options.requests = min(options.requests, 300)
    return options


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    options = parse(arguments)
    result = run(options)
    return finish(options.output, result, markdown(result), judge(result["load"], result["memory"]))
