"""The novelty score, and the background NLL."""

import numpy as np
import pytest

from moleflow.model.routing.novelty import BACKGROUND_QUANTILE, background_nll, novelty_score


def test_the_background_nll_is_a_low_quantile_that_a_defect_does_not_change() -> None:
    values = np.random.default_rng(0).permutation(100).astype(np.float32)
    calm = background_nll(values.reshape(1, 10, 10))
    assert (values < calm).mean() == pytest.approx(BACKGROUND_QUANTILE)
    defect = np.where(values > 50, 1e6, values).reshape(1, 10, 10)
    assert background_nll(defect) == calm


def test_without_excess_the_novelty_score_is_the_distance_ratio() -> None:
    assert novelty_score(0.4, background=-3.0, typical_background=-3.0, dim=160) == 0.4
    assert novelty_score(0.4, background=-90.0, typical_background=-3.0, dim=160) == 0.4


def test_the_novelty_score_rises_with_the_background_nll() -> None:
    found = [novelty_score(0.4, background=10.0 + more, typical_background=10.0, dim=160) for more in (0, 1, 10, 100)]
    assert found == sorted(set(found))


def test_the_excess_is_per_embedding_dimension() -> None:
    assert novelty_score(0.4, 100.0, 20.0, dim=160) == pytest.approx(novelty_score(0.4, 400.0, 80.0, dim=640))


def test_with_a_distance_ratio_of_zero_the_novelty_score_is_zero() -> None:
    assert novelty_score(0.0, background=1e4, typical_background=0.0, dim=160) == 0.0
