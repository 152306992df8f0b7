"""How many epochs are worth their time? Held-out NLL and metrics against the length of training.

    python -m benchmarks epochs DATA --preset fast --backbone NAME [--plugin MODULE] --out epochs/ [--epochs 2 …]

Learns bottle → grid (``--task``) once for each number of epochs, with the whole schedule from warm-up to the end of
the cosine. Judged like other hyperparameters (``trials.py``): held-out NLL and pseudo-defects may choose, the test
images are only reported. Rows are kept in ``OUT/epochs.jsonl``; a second run trains only what is missing.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.accuracy.judging import HEADINGS, cells
from benchmarks.accuracy.products import load_product
from benchmarks.accuracy.trials import Bench, Found, Setting, add_arguments, run_missing
from benchmarks.shared.command import make_parser, positive, prepare
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.training.config import PRESETS, Preset, preset
from moleflow.training.report.markdown import markdown_table

TASKS = ("bottle", "grid")

BUDGETS = {"fast": (2, 4, 8, 16, 32), "main": (4, 8, 15, 30, 60)}
"""Numbers of epochs that are tried by default: around the preset's own, or up to it where it is large."""


def budgets(start: Preset) -> tuple[int, ...]:
    """Numbers of epochs that are tried with a preset."""
    return BUDGETS.get(start.name, tuple(start.training.epochs * share // 4 or 1 for share in (1, 2, 4, 8)))


def setting(epochs: int) -> Setting:
    """The start configuration with another number of epochs."""
    return Setting(f"{epochs} epochs", training={"epochs": epochs})


def table(found: Sequence[tuple[int, Sequence[Found]]]) -> str:
    """Each product's figures by epochs, and the means over products; all are means over seeds."""
    names = list(found[0][1][0]) if found else []
    groups = [(name, [name]) for name in names] + [("**mean**", names)]
    rows = []
    for title, group in groups:
        for epochs, runs in found:
            every = [run[name] for run in runs for name in group]
            seconds = np.mean([figures["seconds"] for figures in every])
            rows.append([title, epochs, *cells(every), f"{seconds:.0f}"])
    return markdown_table(["product", "epochs", *HEADINGS, "train s"], rows, right_from=1)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("epochs", __doc__)
    add_arguments(parser, TASKS)
    parser.add_argument("--preset", choices=list(PRESETS), default="fast")
    parser.add_argument("--epochs", type=positive, action="append", help="repeat for more; default: by preset")
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    keep_freed_memory()
    start = preset(options.preset).with_changes(
        backbone={"name": options.backbone} if options.backbone else {},
        training={"folds": 1},  # held-out images judge
    )
    products = [load_product(options.data, name, options.out, start, options.most) for name in options.task or TASKS]
    bench = Bench(products, options.out, options.backbone_weights)
    wanted = [setting(number) for number in options.epochs or budgets(start)]
    rows = run_missing(bench, wanted, start, options.seed or [0], options.out / "epochs.jsonl", run=not options.table)
    print(table([(each.training["epochs"], runs) for each, runs in rows]))
    return 0
