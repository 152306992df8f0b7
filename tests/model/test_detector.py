"""The detector: mixed batches, named and unknown products, threads, the expert cache, and one backbone pass."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import product_image, tiny_checkpoint, tiny_config

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError, UnknownTaskError
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.routing.router import image_descriptor
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import MAX_CANDIDATES, Failure, Finding, Prediction, Refusal, Verdict
from moleflow.model.verdict.scoring import image_score

IMAGES = [product_image(kind, seed) for kind, seed in ((2, 60), (0, 61), (1, 62), (0, 63), (2, 64))]
KINDS = [2, 0, 1, 0, 2]

FOREIGN = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
"""Noise, as an image of an unknown product."""


def alike(one: Finding | Failure, other: Finding | Failure) -> bool:
    """Whether two predictions are equal up to rounding, which depends on the batch size."""
    assert isinstance(one, Prediction) and isinstance(other, Prediction)
    return (
        one.task.name == other.task.name
        and [c.name for c in one.candidates] == [c.name for c in other.candidates]
        and np.allclose([c.distance for c in one.candidates], [c.distance for c in other.candidates], rtol=1e-4)
        and np.allclose(one.grid_map, other.grid_map, rtol=1e-4, atol=1e-3)
        and math.isclose(one.score, other.score, rel_tol=1e-4)
    )


def same_bits(one: Finding | Failure, other: Finding | Failure) -> bool:
    assert isinstance(one, Prediction) and isinstance(other, Prediction)
    return one.candidates == other.candidates and one.score == other.score and (one.grid_map == other.grid_map).all()


def extractor_of(detector: Detector) -> FeatureExtractor:
    assert isinstance(detector._computes.features, FeatureExtractor)
    return detector._computes.features


def test_unseen_images_of_each_product_are_routed_to_it(detector: Detector) -> None:
    assert [each.task.index for each in detector.predict(IMAGES)] == KINDS


def test_a_mixed_batch_gives_what_single_images_give(detector: Detector) -> None:
    alone = [detector.predict([image])[0] for image in IMAGES]
    assert all(alike(one, other) for one, other in zip(detector.predict(IMAGES), alone, strict=True))


def test_the_order_of_a_batch_is_kept(detector: Detector) -> None:
    forwards, backwards = detector.predict(IMAGES), detector.predict(IMAGES[::-1])[::-1]
    assert all(alike(one, other) for one, other in zip(forwards, backwards, strict=True))


def test_a_prediction_equals_the_method_computed_step_by_step(checkpoint: Checkpoint, detector: Detector) -> None:
    found = detector.predict([IMAGES[0]])[0]
    mean, std = (torch.tensor(values) for values in ((0.5, 0.45, 0.4), (0.25, 0.2, 0.3)))
    x = ((torch.from_numpy(IMAGES[0].copy()).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    expert, prototype = checkpoint.product(2).expert, checkpoint.profile(2).prototype
    with torch.inference_mode():
        embeddings = extractor_of(detector).embedder(checkpoint.backbone()(x))
        nll = negative_log_likelihood(*flow_forward(checkpoint.base(), expert, embeddings))
        difference = (image_descriptor(embeddings) - prototype.mean)[0]
        along = prototype.axes.T @ difference
        across = difference - prototype.axes @ along
        distance = (along.square() / prototype.variances).sum() + across.square().sum() / prototype.floor
    assert found.grid_map == pytest.approx(nll[0].numpy(), rel=1e-4)
    assert found.score == pytest.approx(image_score(nll).item(), rel=1e-4)
    assert found.task.distance == pytest.approx(distance.sqrt().item(), rel=1e-3)
    assert found.grid_map.shape == (4, 4)
    assert found.grid_map.dtype == np.float32


def test_candidates_are_all_products_nearest_first_with_the_margin_to_the_runner_up(detector: Detector) -> None:
    for each in detector.predict(IMAGES):
        distances = [candidate.distance for candidate in each.candidates]
        assert distances == sorted(distances)
        assert {candidate.name for candidate in each.candidates} == {"bolt", "nut", "gear"}
        assert each.margin == distances[1] - distances[0] > 0
        assert each.task == each.candidates[0]


def test_candidates_are_the_nearest_products_and_a_named_one_may_be_another(tmp_path: Path, detector: Detector) -> None:
    names = tuple(f"product{number}" for number in range(MAX_CANDIDATES + 2))
    tiny_checkpoint(tmp_path / "many.safetensors", names=names)
    many = Detector.load(tmp_path / "many.safetensors", device="cpu", precision="fp32")
    free = many.predict([IMAGES[0]], refuse_unknown=False)[0]
    assert len(free.candidates) == MAX_CANDIDATES
    assert (free.task.index, free.candidates[0]) == (2, free.task)
    (left_out, *_) = {*range(len(names))} - {candidate.index for candidate in free.candidates}
    named = many.predict([IMAGES[0]], [names[left_out]])[0]
    assert named.task.index == left_out
    assert named.task.distance > named.candidates[-1].distance
    assert named.candidates == free.candidates
    routed, forced = many.predict_both([IMAGES[0]], [names[left_out]])[0]
    assert (routed.task, forced.task) == (free.task, named.task)


def test_a_named_product_overrides_the_router(detector: Detector) -> None:
    free, forced = detector.predict([IMAGES[0]] * 2, [None, "nut"])
    assert (free.task.name, forced.task.name) == ("gear", "nut")
    assert forced.candidates == free.candidates
    assert forced.score != free.score
    assert forced.threshold == detector.tasks[1].threshold
    assert alike(forced, detector.predict([IMAGES[0]], ["nut"])[0])


def test_an_unknown_product_is_refused_with_the_known_ones(detector: Detector) -> None:
    with pytest.raises(UnknownTaskError, match="No product named 'screw' was learned; learned: bolt, nut, gear"):
        detector.predict(IMAGES[:2], [None, "screw"])


def test_the_verdict_is_the_score_against_the_products_own_threshold(detector: Detector) -> None:
    for each in detector.predict(IMAGES):
        assert each.threshold == detector.tasks[each.task.index].threshold
        assert each.is_anomalous == (each.score > each.threshold)


def test_an_empty_batch_gives_no_results(detector: Detector) -> None:
    assert detector.predict([]) == []


def test_the_numbers_of_names_and_images_must_match(detector: Detector) -> None:
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        detector.predict(IMAGES[:2], ["bolt"])


def test_an_array_that_is_not_an_image_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="must be .* uint8"):
        detector.predict([np.zeros((32, 32), np.uint8)])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (47, 90), (10, 300)])
def test_images_of_other_sizes_are_resized(detector: Detector, height: int, width: int) -> None:
    large = np.asarray(Image.fromarray(IMAGES[1]).resize((width, height), Image.Resampling.BICUBIC))
    mixed = detector.predict([large, IMAGES[0]])
    assert alike(mixed[0], detector.predict([detector.preprocessing.resize(large)])[0])
    assert alike(mixed[1], detector.predict([IMAGES[0]])[0])
    assert mixed[0].pixel_map(height, width).shape == (height, width)
    assert mixed[0].pixel_map().shape == (32, 32)


def test_the_backbone_runs_once_per_batch(detector: Detector) -> None:
    batches = []
    hook = extractor_of(detector).backbone.net.register_forward_hook(
        lambda module, given, out: batches.append(len(given[0]))
    )
    try:
        detector.predict(IMAGES)
    finally:
        hook.remove()
    assert batches == [5]


def test_predict_both_equals_two_predictions(detector: Detector) -> None:
    truth = ["gear", "bolt", "gear", "bolt", "nut"]  # the third and fifth image are routed to another product
    both = detector.predict_both(IMAGES, truth)
    for (routed, named), free, forced in zip(
        both, detector.predict(IMAGES), detector.predict(IMAGES, truth), strict=True
    ):
        assert alike(routed, free)
        assert alike(named, forced)
        assert named.candidates == routed.candidates


def test_predict_both_runs_the_backbone_once_and_rescores_only_misrouted_images(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, scored = [], []
    maps = detector.products.maps
    monkeypatch.setattr(
        detector.products, "maps", lambda features, tasks: scored.extend(tasks) or maps(features, tasks)
    )
    hook = extractor_of(detector).backbone.net.register_forward_hook(lambda module, given, out: passes.append(len(out)))
    try:
        both = detector.predict_both(IMAGES, ["gear", "bolt", "gear", "bolt", "gear"])
    finally:
        hook.remove()
    assert len(passes) == 1
    assert scored == [*KINDS, 2]
    assert [routed is named for routed, named in both] == [True, True, False, True, True]


def test_predict_both_needs_a_learned_name_for_each_image(detector: Detector) -> None:
    with pytest.raises(UnknownTaskError, match="screw"):
        detector.predict_both(IMAGES[:1], ["screw"])
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        detector.predict_both(IMAGES[:2], ["bolt"])
    assert detector.predict_both([], []) == []


def test_threads_on_different_products_do_not_affect_each_other(checkpoint: Checkpoint) -> None:
    detector = Detector.load(checkpoint.path, device="cpu", precision="fp32")
    names = ["bolt", "nut", "gear"]
    jobs = [([IMAGES[i % 5]] * (1 + i % 2), [names[i % 3]] * (1 + i % 2)) for i in range(30)]
    serial = [detector.predict(*job) for job in jobs]
    fresh = Detector.load(checkpoint.path, device="cpu", precision="fp32")
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda job: fresh.predict(*job), jobs))
    for one, other in zip(serial, threaded, strict=True):
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))


def test_detectors_with_different_grids_can_run_at_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # Modules do not store the grid's shape, in which these two detectors differ.
    larger = tiny_checkpoint(tmp_path / "larger.safetensors", config=tiny_config(image_size=48))
    detectors = [Detector.load(each.path, device="cpu", precision="fp32") for each in (checkpoint, larger)]
    serial = [each.predict(IMAGES[:1])[0] for each in detectors]
    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda each: each.predict(IMAGES[:1])[0], detectors * 4))
    assert [each.grid_map.shape for each in serial] == [(4, 4), (6, 6)]
    for index, each in enumerate(threaded):
        assert same_bits(each, serial[index % 2])


def test_a_small_expert_cache_does_not_change_results(checkpoint: Checkpoint, detector: Detector) -> None:
    small = Detector(checkpoint, device="cpu", precision="fp32", max_experts=1)
    expected = detector.predict(IMAGES)
    for _ in range(2):
        assert all(same_bits(one, other) for one, other in zip(small.predict(IMAGES), expected, strict=True))


def test_the_least_recently_used_expert_is_evicted_from_the_cache(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32", max_experts=2)
    merged: list[int] = []
    read = checkpoint.product
    monkeypatch.setattr(checkpoint, "product", lambda index: merged.append(index) or read(index))
    for name in ("bolt", "nut", "bolt", "gear", "bolt", "nut"):
        detector.predict(IMAGES[:1], [name])
    assert merged == [0, 1, 2, 1]


def test_experts_are_read_on_first_use(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Checkpoint.open(checkpoint.path)
    asked: list[str] = []
    read = opened.section
    monkeypatch.setattr(opened, "section", lambda name: asked.append(name) or read(name))
    detector = Detector(opened, device="cpu", precision="fp32")
    assert sorted(asked) == ["backbone", "base", *(f"tasks.{index}.profile" for index in range(3))]
    asked.clear()
    detector.predict(IMAGES[:1] * 2, ["nut", "nut"])
    detector.predict(IMAGES[:1], ["nut"])
    assert asked == ["tasks.1.expert"]


def test_warming_up_merges_the_first_experts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32")
    detector.warm_up(2)
    monkeypatch.setattr(checkpoint, "product", lambda index: pytest.fail("an expert was read after warming up"))
    detector.predict(IMAGES)


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


def test_one_learned_product_has_an_infinite_margin(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "one.safetensors", names=("bolt",))
    each = Detector.load(tmp_path / "one.safetensors", device="cpu").predict([IMAGES[1]])[0]
    assert each.task.name == "bolt"
    assert each.margin == math.inf


def test_bf16_gives_float32_maps_near_those_of_fp32_in_mixed_batches(
    checkpoint: Checkpoint, detector: Detector
) -> None:
    half = Detector.load(checkpoint.path, device="cpu", precision="bf16")
    for one, other in zip(half.predict(IMAGES), detector.predict(IMAGES), strict=True):
        assert one.task.name == other.task.name
        assert one.grid_map.dtype == np.float32
        assert one.score == pytest.approx(other.score, rel=0.1)
    alone = half.predict(IMAGES[:1])[0]
    assert alone.score == pytest.approx(half.predict(IMAGES)[0].score, rel=0.02)


def test_predicting_does_not_change_the_detector(detector: Detector) -> None:
    first = detector.predict(IMAGES)
    detector.predict([np.zeros((32, 32, 3), np.uint8)] * 3, ["bolt", "nut", "gear"])
    assert all(same_bits(one, other) for one, other in zip(first, detector.predict(IMAGES), strict=True))


def test_the_detector_says_what_it_has_learned(checkpoint: Checkpoint, detector: Detector) -> None:
    assert detector.tasks == checkpoint.header.tasks
    assert detector.checkpoint.name == "factory.safetensors"
    assert len(detector.checkpoint.digest) == 64
    assert detector.device.type == "cpu"
    assert detector.precision == "fp32"
