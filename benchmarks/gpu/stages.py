"""The stages, and how one runs: in a process of its own, with a limit of time and a log."""

import argparse
import importlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.context import Context, OutOfTimeError
from benchmarks.gpu.records import FAILED, MEASURED, NOT_MEASURED, STOPPED, Records
from benchmarks.suite.setup import last_lines, run_logged

__all__ = ["STAGES", "Stage", "run_here", "run_stages"]

GRACE_SECONDS = 15
"""A stage that has not ended so long after its time is killed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A module of this package whose ``measure(context)`` fills ``context.result``."""

    name: str
    minutes: float
    """The most that it takes, whatever time is left."""
    needs_data: bool = False


STAGES = {
    stage.name: stage
    for stage in (
        Stage("machine", 2),
        Stage("correctness", 4),
        Stage("speed", 6),
        Stage("service", 6),
        Stage("training_speed", 3),
        Stage("training", 60, needs_data=True),
        Stage("ablations", 600, needs_data=True),
    )
}


def run_stages(
    chosen: Sequence[Stage],
    records: Records,
    command: Callable[[Stage, float], list[str]],
    *,
    deadline: float,
    fresh: bool = False,
    has_data: bool = True,
    temporary: Path,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run the stages that are missing, one after another; ``after`` is called when one has ended.

    ``command`` gets a stage and the time at which it should end. A stage that fails leaves its log.
    """
    for stage in chosen:
        if records.is_done(stage.name) and not fresh:
            print(f"gpu: {stage.name}: kept (--fresh measures again)", file=sys.stderr, flush=True)
            continue
        if stage.needs_data and not has_data:
            records.write(stage.name, NOT_MEASURED, {}, "it needs --data and --products")
        elif time.time() >= deadline:
            print(f"gpu: {stage.name}: not begun, no time is left", file=sys.stderr, flush=True)
            continue
        else:
            end = min(deadline, time.time() + stage.minutes * 60)
            print(f"gpu: {stage.name} …", file=sys.stderr, flush=True)
            _run(stage.name, records, command(stage, end), end, temporary)
        record = records.read()[stage.name]
        state, seconds, reason = record["state"], record["seconds"], record["reason"]
        records.fold(stage.name)
        print(f"gpu: {stage.name}: {state}, {seconds:.0f} s {reason}".rstrip(), file=sys.stderr, flush=True)
        after()


def _run(name: str, records: Records, words: Sequence[str], end: float, temporary: Path) -> None:
    """Run a stage's process. If it fails, its record says so and holds what it had measured."""
    started, reason = time.monotonic(), ""
    records.file(name).unlink(missing_ok=True)
    try:
        status = run_logged(words, records.log(name), temporary, end - time.time() + GRACE_SECONDS)
        if status:
            reason = f"ended with status {status}: {last_lines(records.log(name))}"
        elif not records.file(name).exists():
            reason = "it wrote no result"
    except subprocess.TimeoutExpired:
        reason = "killed, since it did not end in time"
    if reason:
        found = records.read().get(name, {}) if records.file(name).exists() else {}
        records.write(name, FAILED, found.get("result", {}), reason[-400:], time.monotonic() - started)


def run_here(name: str, options: argparse.Namespace) -> int:
    """Run one stage in this process; returns the exit status."""
    earlier = Records(options.output).read().get(name, {}).get("result", {})
    context = Context(name, options, {} if options.fresh else earlier)
    context.listen()
    try:
        importlib.import_module(f"benchmarks.gpu.{name}").measure(context)
    except OutOfTimeError:
        context.stopped = True
    except Exception:
        traceback.print_exc()
        context.keep()
        return 1
    if context.stopped:
        context.write(STOPPED, "no time was left for the rest")
    else:
        context.write(MEASURED)
    return 0
