"""The Markdown table of a speed measurement: times, and ratios within the same round with their spread."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from result_files import ratios, spread

__all__ = ["PRECISIONS", "floor", "markdown"]

PRECISIONS = ("bf16", "fp32")


def floor(times: Mapping[str, Sequence[float]], precision: str) -> list[float]:
    """Backbone plus products, of each round."""
    parts = times[f"backbone-{precision}"], times[f"products-{precision}"]
    return [backbone + products for backbone, products in zip(*parts, strict=True)]


def markdown(result: Mapping[str, Any]) -> str:
    """Everything that a reader needs to judge the figures: machine, versions, settings, tables, what is missing."""
    machine, own, peers = result["machine"], result["own"], result["peers"]
    versions = ", ".join(f"{name} {peers[name]}" for name in ("anomalib", "openvino", "timm") if name in peers)
    variables = " ".join(f"{name}={value}" for name, value in result["environment"].items())
    lines = [
        "# Prediction speed, side by side",
        "",
        f"{result['date']}. {machine['processor']}; load {machine['load_before']} before and {machine['load_after']} "
        f"after. PyTorch {own['torch']} on both sides; {versions}. `{variables}`. {result['rounds']} rounds of "
        f"{result['calls']} batches each; median over the rounds (least–greatest). Peers' ratios: their time by "
        "MoLE-Flow's in the same round, so above 1 MoLE-Flow is faster. `moleflow-"
        f"{own.get('auto_precision', 'fp32')}` is what `--precision auto` takes on this machine.",
    ]
    for batch, times in result["ms_per_image"].items():
        lines += ["", f"## Batch {batch}", "", *_own_rows(times), "", *_peer_rows(times, result["facts"])]
    if result["missing"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in result["missing"].items()]
    return "\n".join(lines) + "\n"


def _own_rows(times: Mapping[str, Sequence[float]]) -> list[str]:
    lines = [
        "| | floor, ms an image | backbone | products | MoLE-Flow, ms an image | × floor |",
        "|---|---|---|---|---|---|",
    ]
    for precision in PRECISIONS:
        own, least = times[f"moleflow-{precision}"], floor(times, precision)
        parts = " | ".join(f"{median(times[f'{part}-{precision}']):.1f}" for part in ("backbone", "products"))
        lines.append(
            f"| {precision} | {spread(least, 1)} | {parts} | {spread(own, 1)} | {spread(ratios(own, least), 2)} |"
        )
    return lines


def _peer_rows(times: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> list[str]:
    peers = [name for name in times if facts[name]["form"] != "floor" and not name.startswith("moleflow-")]
    if not peers:
        return ["No peer was measured."]
    heads = " | ".join(f"× MoLE-Flow {precision}" for precision in PRECISIONS)
    lines = [
        f"| peer | form | precision | pixels | ms an image | {heads} |",
        f"|---|---|---|---|---|{'---|' * len(PRECISIONS)}",
    ]
    for name in sorted(peers, key=lambda name: median(times[name])):
        cells = " | ".join(spread(ratios(times[name], times[f"moleflow-{p}"]), 2) for p in PRECISIONS)
        about = " | ".join(str(facts[name][fact]) for fact in ("form", "precision", "pixels"))
        lines.append(f"| {name.removesuffix('-openvino')} | {about} | {spread(times[name], 1)} | {cells} |")
    return lines
