"""How fast is a prediction, beside neighbouring methods and beside what the hardware needs at least?

    python benchmarks/peers/speed.py --peers VENV/bin/python --output speed.json [--threads N] [--peer stfpm] …

This runs in MoLE-Flow's environment; VENV is what ``setup.sh`` made. Each side is one worker process, and they take
turns: in every round each subject runs a few batches, so that whatever slows the machine slows all alike. A ratio is
taken within a round; shown is the median over the rounds with the least and the greatest.

The *floor* is the bare forward pass of the backbone plus the bare matrix products of the flow, of the same shapes and
type. Peers are anomalib's models below their pre- and post-processing, without and with export to OpenVINO, which
chooses its own precision. MoLE-Flow's time is that of ``Detector.predict``, normalisation and routing included, and of
its pixel maps. All on WideResNet-50-2 at 224 × 224 with random weights, but EfficientAD-S, which has a network of its
own and does not take less than 256 × 256.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from protocol import SubjectError, Worker, WorkerError

from moleflow.model.runtime.threads import THREAD_POLICY

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of all benchmarks

from machine import processor
from result_files import positive, write_result
from speed_table import PRECISIONS, markdown

HERE = Path(__file__).resolve().parent

OWN = [f"{part}-{precision}" for precision in PRECISIONS for part in ("moleflow", "backbone", "products")]
"""The subjects of MoLE-Flow's side; the floor is the sum of the last two of each precision."""

Times = dict[int, dict[str, list[float]]]
"""Milliseconds an image: batch size, then subject, then one median a round."""


class SpeedError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


def environment(threads: int) -> dict[str, str]:
    """Variables of both workers: the number of threads, and that threads without work sleep instead of spinning.

    With OpenMP's default, a worker that waits for its turn would keep its processors busy.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MOLEFLOW_THREADS": str(threads),
        **THREAD_POLICY,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def agree(hellos: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``SpeedError`` unless all workers have the same PyTorch and the same number of threads."""
    for what in ("torch", "threads"):
        found = {str(hello[what]) for hello in hellos}
        if len(found) > 1:
            raise SpeedError(
                f"the workers differ in {what} ({' and '.join(sorted(found))}), so their times cannot be compared; "
                "make the peers' environment anew, with TORCH as in MoLE-Flow's."
            )


def prepare(sides: Mapping[str, Worker], wanted: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Build every subject: facts of those that can be had, and reasons of those that cannot."""
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
    """Times of every subject in turn, round after round; forwards and backwards alternately.

    A subject that fails while it is timed is left out from then on, and its reason given.
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
    """Raise ``SpeedError`` when a subject of MoLE-Flow's side is among those that could not be measured."""
    lost = [f"{name} ({reason})" for name, reason in missing.items() if name in OWN]
    if lost:
        raise SpeedError(f"MoLE-Flow's own side cannot be measured: {'; '.join(lost)}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    variables = environment(options.threads)
    commands = ([options.own, HERE / "own_worker.py"], [options.peers, HERE / "peer_worker.py"])
    with Worker(commands[0], variables) as own, Worker(commands[1], variables) as peers:
        hellos = [own.hello(), peers.hello()]
        agree(hellos)
        known = [name for name in hellos[1]["subjects"] if options.openvino or not name.endswith("-openvino")]
        unknown = set(options.peer or ()) - set(known)
        if unknown:
            raise SpeedError(f"there is no peer {min(unknown)!r}; use some of {', '.join(known)}.")
        wanted = [*OWN, *(name for name in known if not options.peer or name in options.peer)]
        sides = {name: own if name in OWN else peers for name in wanted}
        facts, missing = prepare(sides, wanted)
        need_own(missing)
        subjects = [name for name in wanted if name in facts]
        times, failed = measure(sides, subjects, options.batch or (1, 8), options.rounds, options.calls)
        need_own(failed)
        return {
            "machine": {"processor": processor(), "load_before": options.load, "load_after": _load()},
            "date": time.strftime("%Y-%m-%d"),
            "own": hellos[0],
            "peers": {name: value for name, value in hellos[1].items() if name != "subjects"},
            "environment": {name: value for name, value in variables.items() if name != "PYTHONPATH"},
            "rounds": options.rounds,
            "calls": options.calls,
            "facts": facts,
            "missing": missing | failed,
            "ms_per_image": times,
        }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the python of the peers' environment")
    parser.add_argument("--own", type=Path, default=Path(sys.executable), help="the python of MoLE-Flow's")
    parser.add_argument("--output", type=Path, required=True, help="JSON; the table goes beside it, with suffix .md")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--batch", type=positive, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--calls", type=positive, default=3, help="batches of a subject in a round")
    parser.add_argument("--peer", action="append", help="default: all; with -openvino its export")
    parser.add_argument("--no-openvino", dest="openvino", action="store_false")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 on an error that the user can mend."""
    options = parse(arguments)
    options.load = _load()
    try:
        result = run(options)
    except (SpeedError, WorkerError) as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    text = markdown(result)
    write_result(options.output, result, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
