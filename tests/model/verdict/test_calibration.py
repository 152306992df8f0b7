"""Calibration: valid p-values, thresholds that invert them, and few scores."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moleflow.model.errors import ConfigurationError
from moleflow.model.verdict.calibration import Calibration, TaskCalibration, check_rate, tail_count

SCORES = st.lists(st.floats(-1e4, 1e4, allow_nan=False), min_size=2, max_size=60)
RATES = (0.001, 0.01, 0.1, 0.4, 0.7, 0.95, 0.999)


def exponential(count: int, seed: int = 0) -> Calibration:
    return Calibration.fit(np.random.default_rng(seed).exponential(size=count))


@pytest.mark.parametrize("count", [3, 5, 20, 200])
def test_the_false_alarm_rate_holds_on_average_for_any_number_of_scores(count: int) -> None:
    # The rate of one calibration is known exactly, since the distribution is: exp(−threshold).
    thresholds = np.array([exponential(count, seed).threshold(0.01) for seed in range(4000)])
    assert np.exp(-thresholds).mean() == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("count", [5, 20, 200])
def test_tails_lighter_than_exponential_give_fewer_false_alarms(count: int) -> None:
    rng, reference = np.random.default_rng(1), np.sort(np.random.default_rng(2).normal(size=200_000))
    thresholds = [Calibration.fit(rng.normal(size=count)).threshold(0.01) for _ in range(1000)]
    rates = 1 - np.searchsorted(reference, thresholds) / len(reference)
    assert rates.mean() < 0.01


@pytest.mark.parametrize("count", [3, 5, 20, 200])
def test_p_values_of_new_good_scores_are_uniform(count: int) -> None:
    rng = np.random.default_rng(3)
    p_values = [Calibration.fit(draws[:-1]).p_value(draws[-1]) for draws in rng.exponential(size=(4000, count + 1))]
    for level in (0.02, 0.1, 0.3, 0.5):
        # Below the tail the p-value is interpolated between the conformal ones, which are never below their rate.
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.03)


@given(SCORES)
def test_the_p_value_never_rises_with_the_score(scores: list[float]) -> None:
    calibration = Calibration.fit(scores)
    grid = np.linspace(min(scores) - 10, max(scores) + 10, 200)
    p_values = [calibration.p_value(score) for score in grid]
    assert all(0 <= p <= 1 for p in p_values)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(p_values))


@pytest.mark.parametrize("count", [2, 3, 5, 20, 200])
@pytest.mark.parametrize("rate", RATES)
def test_the_threshold_is_where_the_p_value_equals_the_rate(count: int, rate: float) -> None:
    calibration = exponential(count)
    assert calibration.p_value(calibration.threshold(rate)) == pytest.approx(rate, rel=1e-6)


@given(SCORES)
def test_the_threshold_never_falls_with_a_lower_rate(scores: list[float]) -> None:
    calibration = Calibration.fit(scores)
    thresholds = [calibration.threshold(rate) for rate in RATES]
    assert np.isfinite(thresholds).all()
    assert thresholds == sorted(thresholds, reverse=True)


def test_below_the_tail_the_p_value_of_a_held_out_score_is_conformal() -> None:
    calibration = Calibration.fit(range(100))
    for rank in (30, 50, 100):  # from the top
        assert calibration.p_value(100 - rank) == pytest.approx(rank / 101)


@given(st.one_of(SCORES, st.lists(st.integers(-3, 3), min_size=2, max_size=60)))
@example([0.0, 5e-324])
def test_below_the_tail_the_p_value_is_numpys_interpolation_between_held_out_scores(scores: list[float]) -> None:
    calibration = Calibration.fit(scores)
    known, count = calibration.scores, len(calibration.scores)
    chances = np.arange(count, 0, -1) / (count + 1)
    between = known[:-1] + np.linspace(0.1, 0.9, count - 1) * np.diff(known)
    points = [score for score in (*known, *between) if score <= calibration.start]
    assert [calibration.p_value(float(score)) for score in points] == np.interp(points, known, chances).tolist()


def test_the_threshold_is_far_above_few_scores_and_within_many() -> None:
    few, many = exponential(3), exponential(2000)
    assert few.threshold(0.01) > few.scores[-1] + (few.scores[-1] - few.scores[0])
    assert many.threshold(0.01) < many.scores[-1]


@pytest.mark.parametrize(("count", "tail"), [(2, 1), (3, 2), (5, 4), (20, 9), (200, 28)])
def test_the_tail_grows_with_the_square_root_of_the_number_of_scores(count: int, tail: int) -> None:
    assert tail_count(count) == tail


def test_shifting_and_scaling_all_scores_shifts_and_scales_the_threshold() -> None:
    scores = np.random.default_rng(5).normal(size=30)
    plain = Calibration.fit(scores).threshold(0.01)
    assert Calibration.fit(3 * scores - 700).threshold(0.01) == pytest.approx(3 * plain - 700)


def test_equal_scores_have_a_threshold_above_them() -> None:
    calibration = Calibration.fit([-250.0] * 6)
    assert -250 < calibration.threshold(0.01) < -249
    assert calibration.p_value(-200) < 1e-6


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_too_few_or_non_finite_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 2 finite scores"):
        Calibration.fit(scores)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_an_invalid_rate_is_refused_with_its_value(rate: float) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be {rate!r}"):
        check_rate(rate)


def test_a_product_has_a_calibration_of_each_statistic() -> None:
    values = {"scores": [1.0, 2.0], "peaks": [3.0, 4.0], "grounds": [0.0, 1.0], "distances": [5.0, 6.0]}
    calibration = TaskCalibration.fit(values)
    found = {name: getattr(calibration, name).scores.tolist() for name in values}
    assert found == values
