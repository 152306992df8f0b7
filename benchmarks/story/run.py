"""A day in a factory: products come and go while another one is inspected, and no bit of its answers changes.

    python -m benchmarks story --data DIR [--first bottle] [--taught grid] [--minutes 30] [--output FILE.json]

A checkpoint learns the first product; then a real service serves it, and two clients inspect that product's test images
without a pause. Meanwhile, round after round, another product is taught over HTTP and learned by a job, a folder of it
is inspected, its good images are marked as good, the command recalibrates, half of its image is ignored, it is renamed,
the service restarts, and the product is removed. Gates: every answer for the first product equals the first one bit by
bit, maps included; and no request fails.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import describe
from benchmarks.shared.subprocesses import environment, module_command
from benchmarks.story.day import Day, Taught
from moleflow.training.data.datasets import load_category
from moleflow.training.report.markdown import markdown_table

MOST_INSPECTED = 12
"""Images of the taught product that are inspected, of each kind: the day is about the loop, not about accuracy."""


def taught(data: Path, name: str, count: int) -> Taught:
    """The product, with so many good images to learn."""
    category = load_category(data, name)
    good = [each.path for each in category.test if not each.is_anomalous]
    defective = [each.path for each in category.test if each.is_anomalous]
    return Taught(name, category.train[:count], good[:MOST_INSPECTED], defective[:MOST_INSPECTED])


def learn(options: argparse.Namespace, checkpoint: Path) -> None:
    """Learn the first product, as a user does."""
    words: list[object] = ["train", options.data, "--checkpoint", checkpoint, "--task", options.first]
    words += ["--preset", options.preset, "--epochs", options.epochs]
    done = subprocess.run(module_command("moleflow", *words), env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{options.first} was not learned: {done.stderr.strip()[-400:]}")


def text(found: dict[str, Any]) -> str:
    """Latencies by what happened beside, and the steps' durations."""
    rows = [
        [phase, str(len(values)), *(f"{_quantile(values, q) * 1000:.0f}" for q in (0.5, 0.99, 1.0))]
        for phase, values in found["latency"].items()
    ]
    steps = [[name, f"{statistics.median(each):.1f}", f"{max(each):.1f}"] for name, each in found["seconds"].items()]
    alarms = ", ".join(f"{before} -> {after} of {count}" for before, after, count in found["alarms"][:5])
    return "\n\n".join(
        [
            f"{found['machine']['processor']}.",
            f"{found['rounds']} rounds, {found['answers']} answers, {found['minutes']:.1f} minutes.",
            markdown_table(["inspecting", "answers", "p50 ms", "p99 ms", "longest ms"], rows),
            markdown_table(["step", "median s", "longest s"], steps),
            f"Good images that alarm at the strict rate, before and after recalibration: {alarms}.",
            f"Memory of the service's main process after each round, MB: {found['resident_MB']}.",
        ]
    )


def _quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("story", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with one folder per product")
    parser.add_argument("--first", default="bottle", metavar="NAME", help="the product that is inspected all the time")
    parser.add_argument("--taught", default="grid", metavar="NAME", help="the product that comes and goes")
    parser.add_argument("--preset", default="small", help="of the checkpoint")
    parser.add_argument("--epochs", type=positive, default=1, help="of each learning")
    parser.add_argument("--images", type=positive, default=24, help="good images that are taught")
    parser.add_argument("--minutes", type=float, default=30, help="rounds begin for so long; at least one is played")
    add_output(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="moleflow-story-") as temporary:
        folder = Path(temporary)
        checkpoint = folder / "factory.safetensors"
        learn(options, checkpoint)
        inspected = [each.path for each in load_category(options.data, options.first).test]
        day = Day(
            checkpoint, folder, inspected, taught(options.data, options.taught, options.images), epochs=options.epochs
        )
        started = time.time()
        found = day.play(until=started + options.minutes * 60)
    found |= {"machine": describe(), "minutes": (time.time() - started) / 60}
    gates = [
        Gate(f"answers for {options.first} that differ", str(len(found["different"])), "0", not found["different"]),
        Gate("requests that failed", str(len(found["failed"])), "0", not found["failed"]),
    ]
    shown = text(found)
    found["latency"] = {
        phase: {"answers": len(each), "p50": _quantile(each, 0.5), "p99": _quantile(each, 0.99), "longest": max(each)}
        for phase, each in found["latency"].items()
    }
    return finish(options.output, found, shown, gates)
