"""How fast is a prediction compared with other methods and with the lower bound?

    python -m benchmarks baseline_speed --baselines VENV/bin/python [--threads N] [--baseline stfpm …]

This runs in MoLE-Flow's environment; VENV is what ``setup.sh`` made. Each side is one worker process, and the sides
take turns: in every round each subject runs a few batches, so that a slow machine slows all of them. Ratios are taken
within a round; the tables show the median over the rounds with minimum and maximum.

The *lower bound* is the bare forward pass of the backbone plus the bare matrix products of the flow, with the same
shapes and type. The baselines are anomalib's models without their pre- and post-processing, in PyTorch and exported to
OpenVINO, which chooses its own precision. MoLE-Flow's time is that of ``Detector.predict``, normalisation and routing
included, and of its pixel maps. All run WideResNet-50-2 at 224 × 224 with random weights, except EfficientAD-S, which
has its own network and needs at least 256 × 256.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.baselines.protocol import SubjectError, Worker
from benchmarks.baselines.speed_table import PRECISIONS, markdown
from benchmarks.shared.command import add_output, finish, make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import processor
from benchmarks.shared.subprocesses import module_command
from moleflow.model.runtime.threads import THREAD_POLICY

OWN = [f"{part}-{precision}" for precision in PRECISIONS for part in ("moleflow", "backbone", "products")]
"""The subjects of MoLE-Flow's side; the lower bound is the sum of the last two of each precision."""

Times = dict[int, dict[str, list[float]]]
"""Milliseconds per image: batch size, then subject, then one median per round."""


def thread_variables(threads: int) -> dict[str, str]:
    """Variables of both workers: the number of threads, and that idle threads sleep.

    With OpenMP's default, a worker that waits for its turn would keep its processors busy.
    """
    return {"OMP_NUM_THREADS": str(threads), "MOLEFLOW_THREADS": str(threads), **THREAD_POLICY}


def agree(hellos: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``BenchmarkError`` unless all workers have the same PyTorch and the same number of threads."""
    for what in ("torch", "threads"):
        found = {str(hello[what]) for hello in hellos}
        if len(found) > 1:
            raise BenchmarkError(
                f"the workers differ in {what} ({' and '.join(sorted(found))}), so their times cannot be compared; "
                "make the baselines' environment again, with TORCH as in MoLE-Flow's."
            )


def prepare(sides: Mapping[str, Worker], wanted: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Build every subject: facts of those that succeed, and reasons of those that fail."""
    facts, missing = {}, {}
    for subject in wanted:
        print(f"preparing {subject} …", file=sys.stderr, flush=True)
        try:
            facts[subject] = sides[subject].prepare(subject)
        except SubjectError as error:
            missing[subject] = str(error)
    return facts, missing


def measure(
    sides: Mapping[str, Worker], subjects: Sequence[str], batches: Sequence[int], rounds: int, calls: int
) -> tuple[Times, dict[str, str]]:
    """Times of every subject, in alternating order in each round.

    A subject that fails while it is timed is left out from then on, with its reason.
    """
    failed: dict[str, str] = {}
    times: Times = {batch: {} for batch in batches}
    for batch in batches:
        for number in range(rounds):
            print(f"batch {batch}: round {number + 1} of {rounds} …", file=sys.stderr, flush=True)
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                if subject in failed:
                    continue
                try:
                    spent = sides[subject].time(subject, batch, calls)
                except SubjectError as error:
                    failed[subject] = f"batch {batch}: {error}"
                else:
                    times[batch].setdefault(subject, []).append(median(spent) / batch)
    for subject in failed:
        for found in times.values():
            found.pop(subject, None)
    return times, failed


def need_own(missing: Mapping[str, str]) -> None:
    """Raise ``BenchmarkError`` when a subject of MoLE-Flow's side could not be measured."""
    lost = [f"{name} ({reason})" for name, reason in missing.items() if name in OWN]
    if lost:
        raise BenchmarkError(f"MoLE-Flow's own side cannot be measured: {'; '.join(lost)}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    variables = thread_variables(options.threads)
    commands = (
        module_command("benchmarks.baselines.own_worker", python=options.own),
        module_command("benchmarks.baselines.baseline_worker", python=options.baselines),
    )
    with Worker(commands[0], variables) as own, Worker(commands[1], variables) as baselines:
        hellos = [own.hello(), baselines.hello()]
        agree(hellos)
        known = [name for name in hellos[1]["subjects"] if options.openvino or not name.endswith("-openvino")]
        unknown = set(options.baseline or ()) - set(known)
        if unknown:
            raise BenchmarkError(f"there is no baseline {min(unknown)!r}; use any of {', '.join(known)}.")
        wanted = [*OWN, *(name for name in known if not options.baseline or name in options.baseline)]
        sides = {name: own if name in OWN else baselines for name in wanted}
        facts, missing = prepare(sides, wanted)
        need_own(missing)
        subjects = [name for name in wanted if name in facts]
        times, failed = measure(sides, subjects, options.batch or (1, 8), options.rounds, options.calls)
        need_own(failed)
        return {
            "machine": {"processor": processor(), "load_before": options.load, "load_after": _load()},
            "date": time.strftime("%Y-%m-%d"),
            "own": hellos[0],
            "baselines": {name: value for name, value in hellos[1].items() if name != "subjects"},
            "environment": variables,
            "rounds": options.rounds,
            "calls": options.calls,
            "facts": facts,
            "missing": missing | failed,
            "ms_per_image": times,
        }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from a command line."""
    parser = make_parser("baseline_speed", __doc__)
    parser.add_argument("--baselines", type=Path, required=True, help="the python of the baselines' environment")
    parser.add_argument("--own", type=Path, default=Path(sys.executable), help="the python of MoLE-Flow's")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--batch", type=positive, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--calls", type=positive, default=3, help="batches of a subject per round")
    parser.add_argument("--baseline", action="append", help="default: all; with -openvino the export")
    parser.add_argument("--no-openvino", dest="openvino", action="store_false")
    add_output(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    options = parse(arguments)
    options.load = _load()
    result = run(options)
    return finish(options.output, result, markdown(result))
