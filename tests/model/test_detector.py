"""The detector: mixed batches, named products, candidates, and one backbone pass."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from predictions import IMAGES, alike
from tiny_model import tiny_checkpoint

from benchmarks.shared.reference_flow import flow_forward
from moleflow.model.detector import Detector
from moleflow.model.errors import UnknownTaskError
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.flow.likelihood import negative_log_likelihood
from moleflow.model.routing.router import image_descriptor
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import MAX_CANDIDATES
from moleflow.model.verdict.scoring import image_score

KINDS = [2, 0, 1, 0, 2]


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


def test_the_detector_says_what_it_has_learned(checkpoint: Checkpoint, detector: Detector) -> None:
    assert detector.tasks == checkpoint.header.tasks
    assert detector.checkpoint.name == "factory.safetensors"
    assert len(detector.checkpoint.digest) == 64
    assert detector.device.type == "cpu"
    assert detector.precision == "fp32"
