"""Thresholds decide between good and anomalous; images of unknown products are refused, each on its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictions import IMAGES, alike, same_bits
from tiny_model import tiny_checkpoint

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Prediction, Refusal, Verdict

FOREIGN = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
"""Noise, as an image of an unknown product."""


def test_the_verdict_is_the_score_against_the_products_own_threshold(detector: Detector) -> None:
    for each in detector.predict(IMAGES):
        assert each.threshold == detector.tasks[each.task.index].threshold
        assert each.is_anomalous == (each.score > each.threshold)


def test_an_unknown_image_is_refused_and_the_rest_of_the_batch_scored(
    detector: Detector,
) -> None:
    batch = [IMAGES[1], FOREIGN, IMAGES[0], FOREIGN]
    found = detector.predict(batch)
    assert [type(each) for each in found] == [Prediction, Refusal, Prediction, Refusal]
    assert [each.verdict == Verdict.UNKNOWN_PRODUCT for each in found] == [False, True, False, True]
    alone = [detector.predict([image])[0] for image in (IMAGES[1], IMAGES[0])]
    assert all(alike(one, other) for one, other in zip(found[::2], alone, strict=True))
    assert found[1].candidates == found[3].candidates
    assert {candidate.name for candidate in found[1].candidates} == {"bolt", "nut", "gear"}


def test_a_batch_of_unknown_images_runs_no_expert(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector.products.experts, "get", lambda index: pytest.fail("an expert was asked"))
    assert [type(each) for each in detector.predict([FOREIGN] * 3)] == [Refusal] * 3


def test_a_named_product_scores_images_that_would_be_refused(detector: Detector) -> None:
    found = detector.predict([FOREIGN, FOREIGN], ["nut", None])
    assert isinstance(found[0], Prediction)
    assert found[0].task.name == "nut"
    assert isinstance(found[1], Refusal)


def test_refusing_can_be_turned_off_per_call_or_for_the_detector(checkpoint: Checkpoint, detector: Detector) -> None:
    scored = detector.predict([FOREIGN], refuse_unknown=False)[0]
    never = Detector(checkpoint, device="cpu", precision="fp32", unknown_limit=0).predict([FOREIGN])[0]
    assert isinstance(never, Prediction)
    assert same_bits(scored, never)
    assert scored.task == scored.candidates[0]


def test_a_lower_limit_refuses_more(checkpoint: Checkpoint) -> None:
    strict = Detector(checkpoint, device="cpu", precision="fp32", unknown_limit=1e-6)
    assert [type(each) for each in strict.predict(IMAGES)] == [Refusal] * 5


def test_a_high_background_nll_refuses_what_the_router_accepts(tmp_path: Path) -> None:
    taken = Detector(tiny_checkpoint(tmp_path / "one.safetensors"), device="cpu", precision="fp32")
    result = taken.predict(IMAGES[:1])[0]
    assert isinstance(result, Prediction)
    assert not result.is_unknown
    # The same experts, but with a far lower background NLL recorded for their good images.
    calm = tiny_checkpoint(tmp_path / "two.safetensors", typical_background=-1e9)
    refused = Detector(calm, device="cpu", precision="fp32").predict(IMAGES[:1])[0]
    assert isinstance(refused, Refusal)
    assert refused.novelty_score > DEFAULT_UNKNOWN_LIMIT > refused.candidates[0].distance_ratio
    assert refused.candidates == result.candidates
    scored = Detector(calm, device="cpu", precision="fp32").predict(IMAGES[:1], refuse_unknown=False)[0]
    assert scored.is_unknown
    assert scored.score == result.score


@pytest.mark.parametrize("rates", [{"false_alarm_rate": 0.0}, {"false_alarm_rate": 1.0}, {"unknown_limit": -0.1}])
def test_an_invalid_rate_or_limit_is_refused(checkpoint: Checkpoint, rates: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot be"):
        Detector(checkpoint, device="cpu", precision="fp32", **rates)


def test_the_false_alarm_rate_of_the_detector_moves_every_threshold_and_no_score(
    checkpoint: Checkpoint, detector: Detector
) -> None:
    lax = Detector(checkpoint, device="cpu", precision="fp32", false_alarm_rate=0.2)
    for usual, moved in zip(detector.tasks, lax.tasks, strict=True):
        assert (usual.false_alarm_rate, moved.false_alarm_rate) == (0.01, 0.2)
        assert moved.threshold < usual.threshold
        assert moved.pixel_threshold < usual.pixel_threshold
    for one, other in zip(detector.predict(IMAGES), lax.predict(IMAGES), strict=True):
        assert same_bits(one, other)
        assert one.p_value == other.p_value
        assert other.threshold == lax.tasks[other.task.index].threshold
        assert one.at(0.2).threshold == other.threshold


def test_a_score_at_the_threshold_has_the_false_alarm_rate_as_its_p_value(detector: Detector) -> None:
    each = detector.predict(IMAGES)[0]
    assert each.calibration.scores.p_value(each.threshold) == pytest.approx(each.false_alarm_rate)
    assert each.is_anomalous == (each.p_value < each.false_alarm_rate)
