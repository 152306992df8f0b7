"""Curves to be drawn run through operating points that the scores really have."""

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score, roc_curve

from moleflow.training.evaluation.curves import operating_points


def scores(count: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    good, bad = rng.normal(size=count), rng.normal(1, 1, size=count // 2)
    good, bad = (np.sort(np.round(each, 1) if ties else each) for each in (good, bad))
    return good, bad


@pytest.mark.parametrize("ties", [False, True])
def test_of_few_images_the_curve_is_the_whole_roc_curve(ties: bool) -> None:
    good, bad = scores(40, ties)
    curve = operating_points(good, [bad])
    assert curve is not None
    labels = np.repeat([False, True], [len(good), len(bad)])
    together = np.concatenate([good, bad])
    assert auc(curve.false_positive_rate, curve.found) == pytest.approx(roc_auc_score(labels, together))
    rates, found, _ = roc_curve(labels, together, drop_intermediate=False)
    corners = set(zip(rates.round(9), found.round(9), strict=True))
    assert set(zip(np.round(curve.false_positive_rate, 9), np.round(curve.found, 9), strict=True)) <= corners


def test_of_many_pixels_every_point_is_on_the_curve_and_few_are_kept() -> None:
    good, bad = scores(20_000, ties=False)
    curve = operating_points(good, [bad], limit=0.3)
    assert curve is not None
    assert 100 < len(curve.found) < 400
    assert curve.false_positive_rate[-1] == pytest.approx(0.3, abs=1e-3)
    for rate, found in zip(curve.false_positive_rate[1:], curve.found[1:], strict=True):
        threshold = np.inf if rate == 0 else good[round(len(good) * (1 - rate))]
        lower = -np.inf if rate == 1 else good[round(len(good) * (1 - rate)) - 1]
        assert (bad > threshold).mean() - 1e-9 <= found <= (bad > lower).mean() + 1e-9


def test_both_rates_rise_from_0_to_1() -> None:
    curve = operating_points(np.array([1.0, 2.0]), [np.array([1.5])])
    assert curve is not None
    assert list(zip(curve.false_positive_rate, curve.found, strict=True)) == [(0, 0), (0.5, 0), (0.5, 1), (1, 1)]


def test_groups_weigh_alike() -> None:
    curve = operating_points(np.array([0.0]), [np.array([-1.0]), np.arange(1.0, 100.0)])
    assert curve is not None
    assert (0.0, 0.5) in zip(curve.false_positive_rate, curve.found, strict=True)


@pytest.mark.parametrize(("good", "groups"), [([], [[1.0]]), ([1.0], [])])
def test_without_both_kinds_there_is_no_curve(good: list[float], groups: list[list[float]]) -> None:
    assert operating_points(np.array(good), [np.array(group) for group in groups]) is None
