"""Histograms keep the sides of the threshold apart; curves end at the axis."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from moleflow.training.evaluation.curves import Curve
from moleflow.training.report.charts import curve_chart, histogram


def parts(drawing: str, tag: str, kind: str) -> list[dict[str, str]]:
    return [each.attrib for each in ET.fromstring(drawing).iter(tag) if each.get("class") == kind]


def labels(drawing: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(drawing).iter("text")]


@pytest.mark.parametrize("far", [1.0, 1e3, 1e6])
def test_bars_right_of_the_line_are_scores_above_the_threshold(far: float) -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(100, 5, 50), 110 + far * rng.random(40)
    drawing = histogram(good.tolist(), bad.tolist(), 110.0)
    line = float(parts(drawing, "line", "threshold")[0]["x1"])
    for kind, scores in (("good", good), ("defect", bad)):
        bars = parts(drawing, "rect", kind)
        assert bars
        right = [bar for bar in bars if float(bar["x"]) + float(bar["width"]) / 2 > line]
        assert bool(right) == bool((scores > 110).any())
        assert len(right) == len(bars) or (scores <= 110).any()


def test_a_score_at_the_threshold_is_not_above_it() -> None:
    drawing = histogram([1.0, 2.0, 3.0], [], 3.0)
    line = float(parts(drawing, "line", "threshold")[0]["x1"])
    assert all(float(bar["x"]) + float(bar["width"]) <= line + 0.1 for bar in parts(drawing, "rect", "good"))


@pytest.mark.parametrize(
    ("good", "bad", "threshold"),
    [
        ([5.0], [], 5.0),
        ([5.0] * 9, [5.0], 5.0),
        ([], [1.0, 2.0], 0.0),
        ([-300.0, -301.5], [2e7], -290.0),
        ([0.0], [0.0], 0.0),
    ],
)
def test_any_scores_can_be_drawn(good: list[float], bad: list[float], threshold: float) -> None:
    drawing = histogram(good, bad, threshold)
    assert not re.search("nan|inf", drawing)
    assert bool(parts(drawing, "rect", "good")) == bool(good)
    assert bool(parts(drawing, "rect", "defect")) == bool(bad)
    places = [float(bar["x"]) for kind in ("good", "defect") for bar in parts(drawing, "rect", kind)]
    assert all(0 <= place <= 420 for place in places)


def test_the_axis_has_a_few_round_labels() -> None:
    rng = np.random.default_rng(0)
    drawing = histogram(rng.normal(300, 20, 50).tolist(), rng.normal(2000, 700, 50).tolist(), 350.0)
    ticks = [text for text in labels(drawing) if re.fullmatch(r"−?[\d.]+k?", text)]
    assert 3 <= len(ticks) <= 9
    assert all(len(text) <= 5 for text in ticks)


def test_without_images_there_is_no_histogram() -> None:
    assert histogram([], [], 1.0) == ""


def test_a_curve_is_clipped_at_the_end_of_the_axis() -> None:
    curve = Curve((0.0, 0.0, 0.2, 0.4), (0.0, 0.5, 0.5, 1.0))
    drawing = curve_chart([("pixels", curve)], limit=0.3, rise="overlap")
    points = [tuple(map(float, each.split(","))) for each in parts(drawing, "polyline", "line-0")[0]["points"].split()]
    bottom, right = points[0][1], points[-1][0]
    top = bottom - (bottom - points[-1][1]) / 0.75  # halfway between the last two points
    assert points[-2] == pytest.approx((points[0][0] + (right - points[0][0]) * 2 / 3, (top + bottom) / 2), abs=0.2)
    assert right == max(x for x, _ in points) == 290.0


def test_labels_are_escaped() -> None:
    curve = Curve((0.0, 1.0), (0.0, 1.0))
    drawing = curve_chart([("a<b", curve), ("pixels", curve)], limit=1.0, rise="found")
    assert {"a<b", "pixels", "found", "false-positive rate"} <= set(labels(drawing))
    assert curve_chart([], limit=1.0, rise="found") == ""
