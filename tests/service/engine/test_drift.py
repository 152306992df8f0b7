"""Drift: recent scores against those of the good images that calibrated."""

import threading

import numpy as np
import pytest
from dummy import DummyDetector
from prometheus_client import CollectorRegistry, generate_latest
from running import Running
from sample_images import encoded, sample_image
from scipy.stats import ks_2samp

from moleflow.model.verdict.calibration import Calibration, TaskCalibration
from moleflow.model.verdict.results import Candidate, Prediction, TaskInfo
from moleflow.service.engine.drift import Drift, DriftState, ks_p_value, stability_index

REFERENCES = 60
SCORES = Calibration.fit(np.random.default_rng(0).normal(size=REFERENCES))
CALIBRATION = TaskCalibration(scores=SCORES, peaks=SCORES, grounds=SCORES, distances=SCORES)


def infos(*names: str, **changes: str) -> list[TaskInfo]:
    learned = DummyDetector(names).tasks
    return [info.model_copy(update={"held_out_images": REFERENCES, **changes}) for info in learned]


def prediction(score: float, name: str = "bolt", index: int = 0) -> Prediction:
    task = Candidate(name, index, 1.0, 0.5, 0.1)
    return Prediction((task,), task, float(score), np.zeros((1, 1), np.float32), 64, CALIBRATION)


def watched(scores: np.ndarray, drift: Drift | None = None) -> DriftState:
    drift = drift or Drift(lambda: infos("bolt"))
    for score in scores:
        drift.observe(prediction(score))
    return drift.states()["bolt"]


def good_scores(count: int, shift: float = 0.0, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=count)


def test_the_test_is_the_two_sample_one_of_scipy() -> None:
    reference, recent = np.random.default_rng(0).normal(size=500), good_scores(200, 0.2)
    values = np.array([(reference >= score).mean() for score in recent])
    assert ks_p_value(values, 500) == pytest.approx(ks_2samp(reference, recent, method="asymp").pvalue, rel=0.5)


def test_the_stability_index_is_its_sum_over_ten_bins() -> None:
    assert stability_index(np.arange(0.05, 1, 0.1)) == pytest.approx(0)
    half = np.arange(0.05, 0.5, 0.1)  # five bins with a fifth each, five with almost nothing
    assert stability_index(half) == pytest.approx(5 * 0.1 * np.log(2) + 5 * (1e-4 - 0.1) * np.log(1e-3))


def test_images_like_the_held_out_ones_do_not_drift() -> None:
    state = watched(good_scores(200))
    assert (state.is_drifting, state.ks_p_value > 0.05) == (False, True)


def test_few_products_without_drift_seem_to_drift_even_with_few_held_out_images() -> None:
    rng, found = np.random.default_rng(2), 0
    for _ in range(100):
        fitted = Calibration.fit(rng.normal(size=30))
        found += ks_p_value(np.array([fitted.p_value(score) for score in rng.normal(size=200)]), 30) < 0.001
    assert found <= 2


def test_scores_that_rise_are_drift() -> None:
    assert watched(good_scores(200, shift=1.0)).is_drifting


def test_a_series_of_defects_is_no_drift() -> None:
    scores = np.concatenate([good_scores(150), np.full(100, 50.0)])
    assert not watched(np.random.default_rng(3).permutation(scores)).is_drifting


def test_fewer_than_a_hundred_good_images_say_nothing() -> None:
    drift = Drift(lambda: infos("bolt"))
    for score in good_scores(90, shift=5.0):
        drift.observe(prediction(score))
    assert drift.states() == {}


def test_drift_ends_once_the_recent_images_are_ordinary_again() -> None:
    drift = Drift(lambda: infos("bolt"))
    assert watched(good_scores(200, shift=1.0), drift).is_drifting
    assert not watched(good_scores(220), drift).is_drifting


def test_a_drifting_product_is_not_called_ordinary_at_the_limit_where_drift_began() -> None:
    drift = Drift(lambda: infos("bolt"))
    watched(good_scores(200, shift=1.0), drift)
    between = [
        state
        for state in (watched(good_scores(20, seed=s), drift) for s in range(10))
        if 0.001 < state.ks_p_value < 0.05
    ]
    assert between
    assert all(state.is_drifting for state in between)


def test_a_product_that_was_learned_or_calibrated_again_starts_anew() -> None:
    served = infos("bolt")
    drift = Drift(lambda: served)
    watched(good_scores(200), drift)
    served = infos("bolt", profile_sha256="01" * 32)
    assert drift.states() == {}


def test_a_product_that_has_gone_is_forgotten() -> None:
    served = infos("bolt")
    drift = Drift(lambda: served)
    watched(good_scores(200), drift)
    served = []
    assert drift.states() == {}


def test_results_of_a_replaced_checkpoint_are_not_counted_for_another_product() -> None:
    drift = Drift(lambda: infos("nut"))
    for score in good_scores(200):
        drift.observe(prediction(score, "bolt", 0))
    assert drift.states() == {}


def test_a_product_behind_a_hidden_one_is_watched() -> None:
    served = infos("hidden", "bolt")[1:]
    drift = Drift(lambda: served)
    for score in good_scores(200):
        drift.observe(prediction(score, "bolt", 1))
    assert list(drift.states()) == ["bolt"]


def test_metrics_are_collected_while_results_arrive() -> None:
    served = infos(*(f"bolt {number}" for number in range(200)))
    drift, registry, failures = Drift(lambda: served), CollectorRegistry(), list[Exception]()
    registry.register(drift)

    def collect() -> None:
        try:
            for _ in range(200):
                generate_latest(registry)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    while thread.is_alive():
        for info in served:
            drift.observe(prediction(0.0, info.name, info.index))
        drift.states()
    assert failures == []


def test_beginning_and_end_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    drift = Drift(lambda: infos("bolt"))
    watched(np.concatenate([good_scores(200, shift=1.0), good_scores(220)]), drift)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Product 'bolt' drifts",
        "Product 'bolt' no longer drifts",
    ]


def test_the_states_are_metrics() -> None:
    drift, registry = Drift(lambda: infos("bolt")), CollectorRegistry()
    registry.register(drift)
    assert b"moleflow_drifting{" not in generate_latest(registry)
    state = watched(good_scores(200, shift=1.0), drift)
    text = generate_latest(registry).decode()
    assert 'moleflow_drifting{task="bolt"} 1.0' in text
    assert f'moleflow_drift_ks_p_value{{task="bolt"}} {state.ks_p_value!r}' in text
    assert f'moleflow_drift_stability_index{{task="bolt"}} {state.stability_index!r}' in text


def test_the_service_counts_p_values_and_novelty_of_its_answers(service: Running) -> None:
    answer = service.predict(encoded(sample_image()), map="none").json()
    assert service.metric("moleflow_p_value_sum", task="green") == pytest.approx(answer["p_value"])
    assert service.metric("moleflow_novelty_score_count") == 1
