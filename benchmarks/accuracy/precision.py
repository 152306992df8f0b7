"""What does half precision cost in accuracy? bf16 products, and experts stored in bf16, against fp32 throughout.

    python -m benchmarks precision CHECKPOINT DATA [--plugin MODULE] [--task NAME …] [--output FILE.json]

One checkpoint predicts every test image of its products three times, with the product named: with fp32 products, with
bf16 products, and with bf16 products and experts rounded to bfloat16, as a checkpoint of ``expert_dtype: bfloat16``
stores them. The gates: bf16 products change no product's image AUROC by more than 0.1 points and no pixel AP by more
than 0.3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.shared.command import Gate, add_output, finish, make_parser, prepare
from moleflow.model.detector import Detector
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.data.datasets import load_category
from moleflow.training.evaluation.evaluate import evaluate
from moleflow.training.report.markdown import markdown_table
from moleflow.training.report.tables import HEADINGS

MOST_CHANGED = {"image_auroc": 0.1, "pixel_ap": 0.3}
"""Points by which bf16 products may change a product's figures."""

FIGURES = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")

WAYS = ("fp32", "bf16", "bf16, experts stored in bf16")

Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Figures in percent, by product and way."""


class Rounded(Checkpoint):
    """A checkpoint that rounds its experts as one with ``expert_dtype: bfloat16`` does."""

    def product(self, index: int) -> ProductParts:
        """Product number ``index``, with its expert rounded to bfloat16."""
        parts = super().product(index)
        parts.expert.round_to(torch.bfloat16)
        return parts


def measure(path: Path, data: Path, tasks: Sequence[str]) -> Found:
    """The figures of every product in every way."""
    kinds = {"fp32": (Checkpoint, "fp32"), "bf16": (Checkpoint, "bf16"), WAYS[2]: (Rounded, "bf16")}
    categories = [load_category(data, name) for name in tasks]
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in tasks}
    for way, (kind, precision) in kinds.items():
        evaluation, _ = evaluate(Detector(kind.open(path), precision=precision), categories)
        for each in evaluation.categories:
            values = {name: getattr(each.named, name) for name in FIGURES}
            found[each.category][way] = {
                name: float("nan") if value is None else 100 * value for name, value in values.items()
            }
    return found


def gates(found: Found) -> list[Gate]:
    """How much bf16 products change each limited figure, at most over the products."""
    rows = []
    for name, limit in MOST_CHANGED.items():
        change = max(abs(ways["bf16"][name] - ways["fp32"][name]) for ways in found.values())
        title = f"change of {HEADINGS[name]} by bf16 products, points"
        rows.append(Gate(title, f"{change:.3f}", f"≤ {limit:g}", change <= limit))
    return rows


def markdown(found: Found) -> str:
    """The table, with differences to fp32 in brackets."""
    rows = []
    for name, ways in found.items():
        for way, figures in ways.items():
            cells = [
                f"{figures[key]:.2f}" + ("" if way == "fp32" else f" ({figures[key] - ways['fp32'][key]:+.2f})")
                for key in FIGURES
            ]
            rows.append([name, way, *cells])
    return markdown_table(["product", "products in", *(HEADINGS[key] for key in FIGURES)], rows, right_from=2)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("precision", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--plugin", help="module that registers the checkpoint's backbone with timm")
    parser.add_argument("--task", action="append", help="default: every product of the checkpoint")
    add_output(parser)
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    tasks = options.task or [task.name for task in Checkpoint.open(options.checkpoint).header.tasks]
    found = measure(options.checkpoint, options.data, tasks)
    return finish(options.output, {"figures": found}, markdown(found), gates(found))
