"""What does each hyperparameter bring, judged without test images?

    python -m benchmarks hyperparameters DATA --backbone NAME [--plugin MODULE] --out DIR [--setting NAME …]

Learns bottle → grid → magnetic_tile (``--task``) once for each setting: the ``small`` preset with a field or two
changed. Two figures may choose: the NLL of held-out good images (only among settings with the same input to the flow,
since likelihoods in different spaces cannot be compared), and how well *pseudo-defects* are separated from them
(``trials.py``). Rows are kept in ``OUT/hyperparameters.jsonl``; a second run trains only what is missing. ``--scoring``
takes a setting's stored maps and prints the figures for other smoothing and image scores.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.judging import HEADINGS, cells, judge_all
from benchmarks.accuracy.products import load_product
from benchmarks.accuracy.trials import Bench, Found, Setting, add_arguments, key_of, run_missing
from benchmarks.shared.command import make_parser, prepare
from moleflow.model.verdict.maps import SMOOTHING_SIGMA
from moleflow.model.verdict.scoring import TOP_K
from moleflow.training.config import NO_CHANGES, preset
from moleflow.training.report.markdown import markdown_table

TASKS = ("bottle", "grid", "magnetic_tile")
START = {"epochs": 8, "learning_rate": 1e-3, "folds": 1}
"""Training of a row: minutes on two cores. The presets were chosen from here."""

ZCA = {"adapter": "zca"}


def _zca(name: str, flow: Mapping[str, Any] = NO_CHANGES, **others: Any) -> Setting:
    return Setting(f"ZCA, {name}", flow={**ZCA, **flow}, **others)


SETTINGS = (
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
"""ZCA helped most, so the others are tried on top of it."""


def table(rows: Sequence[tuple[str, Sequence[Found]]]) -> str:
    """Means over products and seeds."""
    lines = []
    for name, runs in rows:
        every = [figures for run in runs for figures in run.values()]
        seconds = sum(each["seconds"] for each in every) / len(runs)
        lines.append([name, *cells(every), f"{seconds:.0f}"])
    return markdown_table(["setting", *HEADINGS, "train s"], lines, right_from=1)


SIGMAS = (0.0, 2 / 224, 4 / 224, 6 / 224, 8 / 224)
TOP_KS = (1, 3, 5, 10, 20)


def scoring_table(bench: Bench, key: str, side: int) -> str:
    """Figures of a row's stored maps by smoothing and by the number of patches in the image score."""
    lines = []
    for sigma, top_k in [(sigma, TOP_K) for sigma in SIGMAS] + [(SMOOTHING_SIGMA, top_k) for top_k in TOP_KS]:
        found = []
        for product in bench.products:
            with np.load(bench.maps_path(key, product)) as file:
                maps = {kind: torch.from_numpy(file[kind]) for kind in file.files}
            found.append(judge_all(maps, product, side, top_k=top_k, sigma=sigma))
        means = (np.mean([each[column] for each in found]) for column in found[0])
        lines.append([f"{224 * sigma:.0f}", top_k, *(f"{mean:.1f}" for mean in means)])
    headings = ["smoothing, px of 224", "patches in the score", *HEADINGS[1:]]
    return markdown_table(headings, lines, right_from=0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from a command line."""
    parser = make_parser("hyperparameters", __doc__)
    add_arguments(parser, TASKS)
    parser.add_argument("--setting", action="append", help="only these; default: all")
    parser.add_argument("--scoring", action="store_true", help="also compare smoothing and image scores")
    options = parser.parse_args(arguments)
    unknown = {*(options.setting or ())} - {setting.name for setting in SETTINGS}
    if unknown:
        names = ", ".join(setting.name for setting in SETTINGS)
        parser.error(f"there is no setting {min(unknown)!r}; use any of: {names}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    options = parse(arguments)
    prepare(options.plugin)
    start = preset("small").with_changes(training=START)
    if options.backbone:
        start = start.with_changes(backbone={"name": options.backbone})
    chosen = [setting for setting in SETTINGS if not options.setting or setting.name in options.setting]
    seeds = options.seed or [0]
    products = [load_product(options.data, name, options.out, start, options.most) for name in options.task or TASKS]
    bench = Bench(products, options.out, options.backbone_weights)
    rows = run_missing(bench, chosen, start, seeds, options.out / "hyperparameters.jsonl", run=not options.table)
    print(table([(setting.name, runs) for setting, runs in rows]))
    if options.scoring:
        for setting in chosen:
            side = setting.resolve(start).model.backbone.image_size
            key = key_of(setting, start, seeds[0], products)
            print(f"\n{setting.name}\n\n{scoring_table(bench, key, side)}")
    return 0
