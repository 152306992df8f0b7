"""What each setting brings, judged without test images: by defects pasted into good images that were held out.

    python benchmarks/levers.py DATA --backbone NAME [--plugin MODULE] --out levers/ [--lever NAME …] [--seed 0 …]

Learns bottle → grid → magnetic_tile (``--task``) once for each lever: the ``small`` preset's flow with a field or two
changed. Two things may choose: the likelihood of held-out good images (of levers with the same input to the flow
only, as likelihoods of other spaces cannot be compared), and how well *pseudo-defects* are told from them
(``benchmarks/trials.py``). Done rows are kept in ``OUT/levers.jsonl``; given again, only missing ones run.
``--scoring`` takes the maps that a lever left and prints what other smoothing and image scores would make of them.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from trials import HEADINGS, Bench, Found, Setting, add_arguments, cells, judge_all, key_of, load_product, run_missing

from moleflow.model.features.backbone import import_plugin
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.model.verdict.scoring import SMOOTHING_SIGMA, TOP_K
from moleflow.training.config import NO_CHANGES, preset

TASKS = ("bottle", "grid", "magnetic_tile")
START = {"epochs": 8, "folds": 1}
"""Epochs a row: what two cores do in minutes."""

ZCA = {"adapter": "zca"}


def _zca(name: str, flow: Mapping[str, Any] = NO_CHANGES, **others: Any) -> Setting:
    return Setting(f"ZCA, {name}", flow={**ZCA, **flow}, **others)


LEVERS = (
    Setting("start"),
    Setting("ZCA", flow=ZCA),
    _zca("batch 4", training={"batch_size": 4}),
    _zca("16 epochs", training={"epochs": 16}),
    _zca("3 epochs", training={"epochs": 3}),
    _zca("0 + 12 blocks", {"coupling_blocks": 0, "dia_blocks": 12}),
    _zca("no mixer", {"spatial_context_kernel": None}),
    _zca("peak 3e-4", training={"learning_rate": 3e-4}),
    _zca("peak 3e-3", training={"learning_rate": 3e-3}),
    _zca("LoRA scale 1", {"lora_alpha": 16.0}),
    _zca("tail weight 0.85", training={"tail_weight": 0.85}),
    _zca("tail weight 0", training={"tail_weight": 0.0}),
    _zca("6 + 2 blocks", {"coupling_blocks": 6, "dia_blocks": 2}),
    _zca("rank 64", {"lora_rank": 64}),
    _zca("last quarter averaged", averaged=0.25),
    _zca("NAdam", optimizer=torch.optim.NAdam),
    _zca("RAdam", optimizer=torch.optim.RAdam),
    _zca("gradient norm 5", training={"max_gradient_norm": 5.0}),
    _zca("D = 320", backbone={"embedding_dim": 320}),
    _zca("320 px", backbone={"image_size": 320}),
    _zca("stride 4 added", backbone={"strides": (4, 8, 16)}),
)
"""The first lever brought most, so the others are tried on top of it."""


def table(rows: Sequence[tuple[str, Sequence[Found]]]) -> str:
    """Markdown: means over products and seeds."""
    lines = ["| lever | " + " | ".join(HEADINGS) + " | train s |", "| --- |" + " ---: |" * (len(HEADINGS) + 1)]
    for name, runs in rows:
        every = [figures for run in runs for figures in run.values()]
        seconds = sum(each["seconds"] for each in every) / len(runs)
        lines.append(f"| {name} | " + " | ".join(cells(every)) + f" | {seconds:.0f} |")
    return "\n".join(lines)


SIGMAS = (0.0, 2 / 224, 4 / 224, 6 / 224, 8 / 224)
TOP_KS = (1, 3, 5, 10, 20)


def scoring_table(bench: Bench, key: str, side: int) -> str:
    """Markdown: what smoothing and the number of patches in the image score make of the maps that a row left."""
    lines = [
        "| smoothing, px of 224 | patches in the score | pseudo: image AUROC | pixel AUROC | pixel AP | AUPRO "
        "| test: image AUROC | pixel AUROC | pixel AP | AUPRO |",
        "| ---: | ---: |" + " ---: |" * 8,
    ]
    for sigma, top_k in [(sigma, TOP_K) for sigma in SIGMAS] + [(SMOOTHING_SIGMA, top_k) for top_k in TOP_KS]:
        found = []
        for product in bench.products:
            with np.load(bench.maps_path(key, product)) as file:
                maps = {kind: torch.from_numpy(file[kind]) for kind in file.files}
            found.append(judge_all(maps, product, side, top_k=top_k, sigma=sigma))
        means = (np.mean([each[column] for each in found]) for column in found[0])
        lines.append(f"| {224 * sigma:.0f} | {top_k} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, TASKS)
    parser.add_argument("--lever", action="append", help="only these; all unless given")
    parser.add_argument("--scoring", action="store_true", help="smoothing and image score, for the levers named")
    options = parser.parse_args(argv)
    unknown = {*(options.lever or ())} - {lever.name for lever in LEVERS}
    if unknown:
        parser.error(f"no lever {min(unknown)!r}; there are: {', '.join(lever.name for lever in LEVERS)}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    configure_threads()
    if options.plugin:
        import_plugin(options.plugin)
    start = preset("small").with_changes(training=START)
    if options.backbone:
        start = start.with_changes(backbone={"name": options.backbone})
    chosen = [lever for lever in LEVERS if not options.lever or lever.name in options.lever]
    seeds = options.seed or [0]
    products = [load_product(options.data, name, options.out, start, options.most) for name in options.task or TASKS]
    bench = Bench(products, options.out, options.backbone_weights)
    rows = run_missing(bench, chosen, start, seeds, options.out / "levers.jsonl", run=not options.table)
    print(table([(lever.name, runs) for lever, runs in rows]))
    if options.scoring:
        for lever in chosen:
            resolved = lever.resolve(start)
            key = key_of(lever, start, seeds[0], products)
            print(f"\n{lever.name}\n" + scoring_table(bench, key, resolved.model.backbone.image_size))


if __name__ == "__main__":
    restart_prepared()
    main()
