"""The metrics equal scikit-learn's, ties included, and are never NaN."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from moleflow.training.evaluation import metrics
from moleflow.training.evaluation.metrics import PixelScores, Ranking, image_ranking, ranking

NOTHING = Ranking(None, None, None)


def by_scikit_learn(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), f1.max()


def figures(result: Ranking) -> tuple[float, float, float]:
    assert result.auroc is not None
    assert result.average_precision is not None
    assert result.best_f1 is not None
    return result.auroc, result.average_precision, result.best_f1


@settings(max_examples=200, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60).filter(
        lambda samples: len({label for _, label in samples}) == 2
    )
)
def test_with_many_ties_the_metrics_equal_scikit_learn(samples: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in samples], float), np.array([a for _, a in samples])
    assert figures(image_ranking(scores, labels)) == pytest.approx(by_scikit_learn(scores, labels), abs=1e-12)


def test_without_ties_the_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.1
    scores = rng.normal(size=5000) + labels * 1.5
    assert figures(image_ranking(scores, labels)) == pytest.approx(by_scikit_learn(scores, labels), abs=1e-12)


def test_work_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    negatives, positives = rng.integers(0, 50, 400).astype(float), rng.integers(20, 70, 300).astype(float)
    whole = ranking(negatives.copy(), positives.copy())
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    assert figures(ranking(negatives, positives)) == pytest.approx(figures(whole), abs=1e-12)


def test_perfect_and_reversed_scores_are_1_and_0() -> None:
    assert figures(image_ranking([1.0, 2.0, 3.0], [False, False, True])) == (1, 1, 1)
    assert image_ranking([1.0, 2.0, 3.0], [True, False, False]).auroc == 0


def test_equal_scores_are_as_good_as_chance() -> None:
    assert image_ranking([5.0] * 4, [True, False, False, False]).auroc == 0.5


@pytest.mark.parametrize("labels", [[], [False, False], [True, True]])
def test_without_both_kinds_nothing_is_defined(labels: list[bool]) -> None:
    assert image_ranking([1.0] * len(labels), labels) == NOTHING


def test_infinite_scores_are_ranked() -> None:
    assert image_ranking([-math.inf, 0.0, math.inf], [False, False, True]).auroc == 1


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="a score is NaN"):
        image_ranking([math.nan, 1.0], [False, True])


def test_scores_and_labels_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="two lists of one length"):
        image_ranking([1.0, 2.0], [True])


def test_pixel_metrics_equal_scikit_learn_over_all_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels, maps, masks = PixelScores(side=32), [], []
    for number in range(6):
        mask = rng.random((32, 32)) < (0.1 if number % 2 else 0)
        scores = np.round(rng.normal(size=(32, 32)) + mask, 1).astype(np.float32)
        pixels.add(scores, mask if number % 2 else None)
        maps.append(scores)
        masks.append(mask)
    expected = by_scikit_learn(np.concatenate(maps).ravel(), np.concatenate(masks).ravel())
    assert figures(pixels.ranking()) == pytest.approx(expected, abs=1e-12)


def test_images_of_any_size_are_brought_to_the_evaluation_size() -> None:
    pixels = PixelScores(side=8)
    mask = np.zeros((32, 48), bool)
    mask[:16] = True
    pixels.add(np.where(mask, 2.0, 1.0), mask)
    assert figures(pixels.ranking()) == (1, 1, 1)


def test_pixel_metrics_are_undefined_without_masks() -> None:
    pixels = PixelScores(side=8)
    assert pixels.ranking() == NOTHING
    pixels.add(np.zeros((8, 8)), None)
    assert pixels.ranking() == NOTHING


def test_the_metrics_may_be_asked_for_more_than_once() -> None:
    pixels = PixelScores(side=2)
    pixels.add(np.array([[4.0, 3.0], [2.0, 1.0]]), np.array([[False, True], [False, False]]))
    assert pixels.ranking() == pixels.ranking()
    pixels.add(np.array([[9.0, 0.0], [0.0, 0.0]]), np.array([[True, False], [False, False]]))
    assert pixels.ranking().best_f1 == pytest.approx(0.8)


@pytest.mark.parametrize("mask", [np.zeros((4, 5), bool), np.zeros((4, 4, 1), bool)])
def test_a_mask_of_another_shape_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be .* alike"):
        PixelScores().add(np.zeros((4, 4)), mask)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        PixelScores().add(np.array([[value]]), None)
