"""The Markdown tables of a speed measurement: times, and ratios within the same round with their spread."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.shared.statistics import ratios, spread
from moleflow.training.report.markdown import markdown_table

__all__ = ["PRECISIONS", "lower_bound", "markdown"]

PRECISIONS = ("bf16", "fp32")


def lower_bound(times: Mapping[str, Sequence[float]], precision: str) -> list[float]:
    """Backbone plus products, one per round."""
    parts = times[f"backbone-{precision}"], times[f"products-{precision}"]
    return [backbone + products for backbone, products in zip(*parts, strict=True)]


def markdown(result: Mapping[str, Any]) -> str:
    """Machine, versions, settings, the tables of each batch size, and what could not be measured."""
    machine, own, baselines = result["machine"], result["own"], result["baselines"]
    versions = ", ".join(f"{name} {baselines[name]}" for name in ("anomalib", "openvino", "timm") if name in baselines)
    variables = " ".join(f"{name}={value}" for name, value in result["environment"].items())
    lines = [
        "# Prediction speed compared with the baselines",
        "",
        f"{result['date']}. {machine['processor']}; load {machine['load_before']} before and {machine['load_after']} "
        f"after. PyTorch {own['torch']} on both sides; {versions}. `{variables}`. {result['rounds']} rounds of "
        f"{result['calls']} batches each; median over the rounds (minimum–maximum). The baselines' ratios are their "
        "time / MoLE-Flow's in the same round: above 1, MoLE-Flow is faster. `moleflow-"
        f"{own.get('auto_precision', 'fp32')}` is what `--precision auto` uses on this machine.",
    ]
    for batch, times in result["ms_per_image"].items():
        lines += ["", f"## Batch {batch}", "", _own_table(times), "", _baseline_table(times, result["facts"])]
    if result["missing"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in result["missing"].items()]
    return "\n".join(lines)


def _own_table(times: Mapping[str, Sequence[float]]) -> str:
    headings = ["", "lower bound, ms per image", "backbone", "products", "MoLE-Flow, ms per image", "/ lower bound"]
    rows = []
    for precision in PRECISIONS:
        own, bound = times[f"moleflow-{precision}"], lower_bound(times, precision)
        parts = [f"{median(times[f'{part}-{precision}']):.1f}" for part in ("backbone", "products")]
        rows.append([precision, spread(bound, 1), *parts, spread(own, 1), spread(ratios(own, bound), 2)])
    return markdown_table(headings, rows)


def _baseline_table(times: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> str:
    names = [name for name in times if facts[name]["form"] != "lower bound" and not name.startswith("moleflow-")]
    if not names:
        return "No baseline was measured."
    headings = ["baseline", "form", "precision", "pixels", "ms per image", *(f"/ MoLE-Flow {p}" for p in PRECISIONS)]
    rows = [
        [
            name.removesuffix("-openvino"),
            *(facts[name][fact] for fact in ("form", "precision", "pixels")),
            spread(times[name], 1),
            *(spread(ratios(times[name], times[f"moleflow-{p}"]), 2) for p in PRECISIONS),
        ]
        for name in sorted(names, key=lambda name: median(times[name]))
    ]
    return markdown_table(headings, rows)
