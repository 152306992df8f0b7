"""How many epochs are worth it: likelihood of held-out good images, and metrics, against the length of training.

    python benchmarks/epochs.py DATA --preset fast --backbone NAME [--plugin MODULE] --out epochs/ [--epochs 2 …]

Learns bottle → grid (``--task``) once for each number of epochs, each with the whole schedule from warm-up to the
cosine's end. Judged as levers are (``benchmarks/trials.py``): held-out likelihood and pseudo-defects may choose, the
test images are for the report. Done rows are kept in ``OUT/epochs.jsonl``; given again, only missing ones run.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from result_files import positive
from trials import HEADINGS, Bench, Found, Setting, add_arguments, cells, load_product, run_missing

from moleflow.model.features.backbone import import_plugin
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.training.config import PRESETS, Preset, preset

TASKS = ("bottle", "grid")

BUDGETS = {"fast": (2, 4, 8, 16, 32), "main": (4, 8, 15, 30, 60)}
"""Epochs tried unless told otherwise: around the preset's own number, and up to it where it is large."""


def budgets(start: Preset) -> tuple[int, ...]:
    """Epochs that are tried with a preset."""
    return BUDGETS.get(start.name, tuple(start.training.epochs * share // 4 or 1 for share in (1, 2, 4, 8)))


def setting(epochs: int) -> Setting:
    """A training of so many epochs, and nothing else changed."""
    return Setting(f"{epochs} epochs", training={"epochs": epochs})


def table(found: Sequence[tuple[int, Sequence[Found]]]) -> str:
    """Markdown: each product's figures by epochs, and the means over products; means over seeds throughout."""
    names = list(found[0][1][0]) if found else []
    groups = [(name, [name]) for name in names] + [("**mean**", names)]
    lines = [
        "| product | epochs | " + " | ".join(HEADINGS) + " | train s |",
        "| --- |" + " ---: |" * (len(HEADINGS) + 2),
    ]
    for title, group in groups:
        for epochs, runs in found:
            every = [run[name] for run in runs for name in group]
            seconds = np.mean([figures["seconds"] for figures in every])
            lines.append(f"| {title} | {epochs} | " + " | ".join(cells(every)) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, TASKS)
    parser.add_argument("--preset", choices=list(PRESETS), default="fast")
    parser.add_argument("--epochs", type=positive, action="append", help="repeat for more; default: by preset")
    options = parser.parse_args(argv)
    configure_threads()
    keep_freed_memory()
    if options.plugin:
        import_plugin(options.plugin)
    start = preset(options.preset).with_changes(
        backbone={"name": options.backbone} if options.backbone else {},
        training={"folds": 1},  # held-out images judge
    )
    products = [load_product(options.data, name, options.out, start, options.most) for name in options.task or TASKS]
    bench = Bench(products, options.out, options.backbone_weights)
    wanted = [setting(number) for number in options.epochs or budgets(start)]
    rows = run_missing(bench, wanted, start, options.seed or [0], options.out / "epochs.jsonl", run=not options.table)
    print(table([(each.training["epochs"], runs) for each, runs in rows]))


if __name__ == "__main__":
    restart_prepared()
    main()
