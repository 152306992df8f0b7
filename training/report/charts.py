"""Inline SVG charts of the report: score histograms, and curves over the false-positive rate.

Colours and fonts come from the page's CSS by class (``good``, ``defect``, ``line-0`` …), for light and dark mode. Sizes
are in units of each chart's view box.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from moleflow.training.evaluation.curves import Curve

__all__ = ["curve_chart", "histogram"]

_BINS = 44
"""Number of bins of a histogram."""

_TICK_GAP = 52.0
"""Smallest distance between two tick labels."""

_ENOUGH_TICKS = 4
"""Finer steps are tried until there are this many ticks."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of the plot area."""


def histogram(good: Sequence[float], defective: Sequence[float], threshold: float) -> str:
    """A histogram with good images upwards and defective ones downwards, each normalised separately.

    The axis is linear near the threshold and logarithmic far from it (asinh, in units of the good scores' spread),
    since defects may score a hundred times further from the threshold than good images. No bin straddles the threshold.
    An empty string without images.
    """
    scores = np.array([*good, *defective], dtype=np.float64)
    if not len(scores):
        return ""
    width, height = 420.0, 260.0
    left, top, right, bottom = 8.0, 46.0, width - 8.0, height - 40.0
    unit = _spread(np.array(good if len(good) else defective, dtype=np.float64))
    ends = np.arcsinh((np.array([scores.min(), scores.max(), threshold]) - threshold) / unit)
    step = max((ends.max() - ends.min()) / _BINS, 1e-9)
    first, last = math.floor(ends.min() / step) - 1, math.ceil(ends.max() / step) + 1

    def x_of(value: float) -> float:
        place = math.asinh((value - threshold) / unit) / step
        return left + (right - left) * (place - first) / (last - first)

    middle = (top + bottom) / 2
    bar = (right - left) / (last - first)
    parts = [_svg_start(width, height, "Scores of good and defective images")]
    for kind, values, up in (("good", good, True), ("defect", defective, False)):
        fractions = _fractions(np.arcsinh((np.array(values) - threshold) / unit) / step, first, last)
        for number in np.flatnonzero(fractions):
            tall = float(fractions[number] / fractions.max()) * (middle - top - 4)
            y = middle - 1 - tall if up else middle + 1
            parts.append(_rect(kind, left + number * bar + 0.6, y, bar - 1.2, tall))
    parts.append(_line("axis", left, middle, right, middle))
    at = x_of(threshold)
    parts.append(_line("threshold", at, top - 14, at, bottom))
    anchor = "end" if at > (left + right) / 2 else "start"
    parts.append(_text(at + (-6 if anchor == "end" else 6), top - 4, f"threshold {threshold:.4g}", anchor, "strong"))
    parts.append(_text(left, 14, f"↑ good ({len(good)})", "start", "good-text"))
    parts.append(_text(left + 86, 14, f"↓ defective ({len(defective)})", "start", "defect-text"))
    low, high = threshold + unit * math.sinh(first * step), threshold + unit * math.sinh(last * step)
    for value in _ticks(low, high, x_of):
        parts.append(_line("tick", x_of(value), bottom, x_of(value), bottom + 4))
        parts.append(_text(x_of(value), bottom + 17, _number(value), "middle"))
    parts.append(_text((left + right) / 2, height - 5, "image score in nats", "middle", "quiet"))
    return "".join(parts) + "</svg>"


def curve_chart(curves: Sequence[tuple[str, Curve]], *, limit: float, rise: str) -> str:
    """Labelled curves over false-positive rates from 0 to ``limit``; ``rise`` is the label of the other axis."""
    if not curves:
        return ""
    width, height = 300.0, 260.0
    box = left, top, right, bottom = 40.0, 12.0, width - 10.0, height - 40.0
    parts = [_svg_start(width, height, f"{rise} over the false-positive rate")]
    for number in range(6):
        level = number / 5
        y = bottom - (bottom - top) * level
        parts.append(_line("axis" if number == 0 else "grid", left, y, right, y))
        parts.append(_text(left - 6, y + 4, f"{level:.1f}", "end"))
        x = left + (right - left) * level
        parts.append(_line("tick", x, bottom, x, bottom + 4))
        parts.append(_text(x, bottom + 17, f"{limit * level:.2g}", "middle"))
    for number, (label, curve) in enumerate(curves):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _placed(curve, limit, box))
        parts.append(f'<polyline class="line-{number}" points="{points}"/>')
        y = bottom - 12 - 16 * (len(curves) - 1 - number)
        parts.append(_line(f"line-{number}", right - 128, y - 4, right - 110, y - 4))
        parts.append(_text(right - 104, y, label, "start"))
    parts.append(_text((left + right) / 2, height - 5, "false-positive rate", "middle", "quiet"))
    parts.append(
        f'<text class="quiet" transform="translate(11 {(top + bottom) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(rise)}</text>'
    )
    return "".join(parts) + "</svg>"


def _placed(curve: Curve, limit: float, box: Box) -> list[tuple[float, float]]:
    """The positions of a curve's points from 0 to ``limit``, with the last segment interpolated."""
    left, top, right, bottom = box
    rates, found = np.array(curve.false_positive_rate), np.array(curve.found)
    kept = rates <= limit
    rates = np.concatenate([[0.0], rates[kept], [limit]])
    found = np.concatenate([[0.0], found[kept], [np.interp(limit, curve.false_positive_rate, found)]])
    return list(zip(left + (right - left) * rates / limit, bottom - (bottom - top) * found, strict=True))


def _spread(scores: np.ndarray) -> float:
    """Half the range between the 10 % and 90 % quantiles; never zero."""
    low, high = np.quantile(scores, [0.1, 0.9])
    return float(max((high - low) / 2, 1e-6 * max(abs(low), abs(high)), 1e-9))


def _fractions(places: np.ndarray, first: int, last: int) -> np.ndarray:
    """The fraction of values in each bin ``(last − first,)``; bins include their upper end, so 0 is not above 0."""
    counts = np.zeros(last - first)
    if len(places):
        np.add.at(counts, np.clip(np.ceil(places - first).astype(int) - 1, 0, last - first - 1), 1 / len(places))
    return counts


def _ticks(low: float, high: float, x_of: Callable[[float], float]) -> list[float]:
    """Round values between ``low`` and ``high`` with enough distance, coarsest steps first."""
    chosen: list[float] = []
    exponent = math.ceil(math.log10(max(high - low, abs(low), abs(high))))
    edges = x_of(low) + 12, x_of(high) - 12
    for step in (factor * 10.0**power for power in range(exponent, exponent - 7, -1) for factor in (1.0, 0.5, 0.2)):
        if len(chosen) >= _ENOUGH_TICKS or (high - low) / step > 1000:
            break
        for value in (step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)):
            x = x_of(value)
            if edges[0] <= x <= edges[1] and all(abs(x - x_of(other)) >= _TICK_GAP for other in chosen):
                chosen.append(value)
    return sorted(chosen)


def _number(value: float) -> str:
    """A tick label, with k for thousands."""
    return f"{value / 1000:g}k".replace("-", "−") if abs(value) >= 10_000 else f"{value:.6g}".replace("-", "−")


def _svg_start(width: float, height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
