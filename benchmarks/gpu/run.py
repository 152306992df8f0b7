"""Measure what one GPU does with MoLE-Flow: correctness, speed, the service, training and the ablation study.

    python -m benchmarks gpu --output DIR [--minutes M] [--only machine,speed] [--fresh]
        [--data DIR --products NAME … --backbone NAME --weights FILE --plugin FILE]

Each stage runs in a process of its own, with a limit of time and a log. What it measured is in DIR/gpu.json as soon as
it ends, with the tables in DIR/gpu.md and all output in DIR/gpu.log. The same command continues where an earlier one
ended: whole stages are kept, and those that were stopped go on. Large files, such as checkpoints, are in --work.

No network is needed. Networks have random weights, except where products are learned; that needs --data (MVTec AD's
layout), the products in order, and a backbone's weights (``python -m benchmarks gpu_pack`` prepares them). With
--reduced everything is tiny, the data is synthetic by default, and the command also runs on a CPU: it then tests only
itself.

The service takes its settings from MOLEFLOW_* variables, as always. Exit status 1: a stage failed.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.records import FAILED, Records, write_json
from benchmarks.gpu.report import summary
from benchmarks.gpu.stages import STAGES, Stage, run_here, run_stages
from benchmarks.shared.command import make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.subprocesses import ROOT, module_command
from moleflow.model.files.atomic import atomic_write

PATHS = ("output", "work", "data", "weights", "wrk")
"""Options that are paths, which a stage's process needs absolute."""


def names_of(text: str) -> list[str]:
    """Names of stages, separated by commas, for ``argparse``."""
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"there is no stage {name!r}; use some of {', '.join(STAGES)}")
    return found


def share_of(text: str) -> tuple[int, int]:
    """``I/N``, for ``argparse``."""
    part, _, parts = text.partition("/")
    found = int(part), int(parts)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from a command line, with absolute paths."""
    parser = make_parser("gpu", __doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu", metavar="DIR", help="folder of large files")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the most that all stages take together")
    parser.add_argument("--only", type=names_of, metavar="A,B", help=f"in this order; some of {', '.join(STAGES)}")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--reduced", action="store_true", help="tiny sizes, on a CPU too: a test of this command")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with one folder per product")
    parser.add_argument("--products", nargs="+", default=[], metavar="NAME", help="those to learn, in order")
    parser.add_argument("--backbone", metavar="NAME", help="timm name of the backbone with weights")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its weights")
    parser.add_argument("--plugin", metavar="MODULE", help="module or file that registers the backbone with timm")
    parser.add_argument("--epochs", type=positive, help="of the ablation study's rows; default: the preset's 60")
    parser.add_argument("--studies", metavar="A,B", help="of the ablation study; default: all, the core first")
    parser.add_argument(
        "--share",
        type=share_of,
        default=(1, 1),
        metavar="I/N",
        help="part I of N of the ablation study's rows, for processes with one --work; begin the others after a row",
    )
    parser.add_argument(
        "--settings", metavar="A,B", help="of the service: some of default, wide, several; default: all"
    )
    parser.add_argument("--wrk", type=Path, metavar="FILE", help="the load generator; a libluajit may lie beside it")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)  # run one stage in this process
    parser.add_argument("--deadline", type=float, default=math.inf, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in PATHS:
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.absolute())
    if options.plugin and Path(options.plugin).exists():
        options.plugin = str(Path(options.plugin).absolute())
    return options


def command(options: argparse.Namespace, stage: Stage, deadline: float) -> list[str]:
    """The command line that runs one stage with the same options."""
    words: list[object] = ["gpu", "--stage", stage.name, "--deadline", deadline]
    for name in (*PATHS, "backbone", "plugin", "epochs", "studies", "settings"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", value]
    words += ["--share", "{}/{}".format(*options.share)]
    words += ["--products", *options.products] if options.products else []
    words += [f"--{name}" for name in ("fresh", "reduced") if getattr(options, name)]
    return module_command("benchmarks", *words)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    options = parse(arguments)
    if options.stage:
        return run_here(options.stage, options)
    if options.data and not options.products:
        raise BenchmarkError("--data needs --products, the products to learn in order.")
    if options.data and not options.data.is_dir():
        raise BenchmarkError(f"there is no folder {options.data}.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running stage is ended too
    records, chosen = Records(options.output), options.only or list(STAGES)
    records.recover(STAGES)

    def write() -> None:
        with atomic_write(options.output / "gpu.md") as path:
            path.write_text(summary(records.read()), encoding="utf-8")

    run_stages(
        [STAGES[name] for name in chosen],
        records,
        lambda stage, end: command(options, stage, end),
        deadline=time.time() + options.minutes * 60,
        fresh=options.fresh,
        has_data=options.reduced or options.data is not None,
        temporary=options.work / "temporary",
        after=write,
    )
    found = records.read()
    write_json(records.whole, {"stages": found})
    write()
    print(summary(found))
    return int(any(found.get(name, {}).get("state") == FAILED for name in chosen))
