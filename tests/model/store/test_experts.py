"""A damaged expert costs the images of its own product their verdict, and no others."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import damage, product_image, tiny_checkpoint

from moleflow.model.detector import Detector
from moleflow.model.errors import ExpertError, PredictionError
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.scorer import PatchMaps
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.experts import MergedExperts
from moleflow.model.verdict.results import Failure, Prediction

IMAGES = [product_image(kind, 60 + kind) for kind in range(3)]
NAMES = ["bolt", "nut", "gear"]


@pytest.fixture
def damaged(tmp_path: Path) -> Detector:
    """A detector whose second product's expert is damaged."""
    path = tmp_path / "factory.safetensors"
    tiny_checkpoint(path)
    damage(path, "tasks.1.expert")
    return Detector.load(path, device="cpu", precision="fp32")


def test_the_other_images_of_the_batch_get_their_verdicts(damaged: Detector, detector: Detector) -> None:
    found = damaged.predict(IMAGES, NAMES)
    assert [type(each) for each in found] == [Prediction, Failure, Prediction]
    for one, other in zip(found[::2], detector.predict(IMAGES, NAMES)[::2], strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-4)


def test_a_failure_names_the_product_and_has_no_verdict(damaged: Detector) -> None:
    _, failure, _ = damaged.predict(IMAGES)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, ExpertError)
    assert failure.error.task == "nut"
    with pytest.raises(ExpertError, match="'nut' is damaged.*factory.safetensors.*restore the file.*Other products"):
        failure.verdict  # noqa: B018


def test_each_failed_image_gets_an_error_of_its_own(damaged: Detector) -> None:
    one, other = damaged.predict([IMAGES[1]] * 2)
    assert one.error is not other.error


def test_an_evaluation_gets_the_error_instead(damaged: Detector) -> None:
    with pytest.raises(ExpertError, match="'nut'"):
        damaged.predict(IMAGES, refuse_unknown=False)
    with pytest.raises(ExpertError, match="'nut'"):
        damaged.predict_both(IMAGES, NAMES)


def test_a_damaged_expert_is_not_read_again_for_every_image(damaged: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged.predict(IMAGES)
    monkeypatch.setattr(damaged._checkpoint, "product", lambda index: pytest.fail("it was read again"))
    assert isinstance(damaged.predict(IMAGES)[1], Failure)


def test_more_products_than_are_kept_are_distinguished_too(damaged: Detector) -> None:
    small = Detector(damaged._checkpoint, device="cpu", precision="fp32", max_experts=1)
    assert [type(each) for each in small.predict(IMAGES)] == [Prediction, Failure, Prediction]


def test_warming_up_leaves_a_damaged_expert_aside(damaged: Detector) -> None:
    damaged.warm_up(2)


def test_warming_up_fails_where_no_product_is_left(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    tiny_checkpoint(path, names=("bolt",))
    damage(path, "tasks.0.expert")
    with pytest.raises(ExpertError, match="'bolt'"):
        Detector.load(path, device="cpu").warm_up()


def test_numbers_that_are_not_finite_are_no_verdict(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32")
    experts = detector.products.experts
    assert isinstance(experts, MergedExperts)
    sound = experts.get

    def get(index: int) -> object:
        if index != 2:
            return sound(index)
        return lambda features: PatchMaps(*[torch.full(features.embeddings.shape[:3], math.nan)] * 2)

    monkeypatch.setattr(experts, "get", get)
    found = detector.predict(IMAGES)
    assert [type(each) for each in found] == [Prediction, Prediction, Failure]
    assert isinstance(found[2].error, ExpertError)
    assert found[2].error.task == "gear"
    with pytest.raises(ExpertError, match="'gear'.*not finite"):
        detector.predict(IMAGES, refuse_unknown=False)
    with pytest.raises(ExpertError, match="'gear'.*not finite"):
        detector.predict_both(IMAGES, NAMES)


def test_a_damaged_backbone_is_reported_and_no_product_is_blamed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32")
    monkeypatch.setattr(
        detector._computes.features,
        "forward",
        lambda batch: PatchFeatures(torch.full((len(batch), 4, 4, 16), math.nan)),
    )
    for failure in detector.predict(IMAGES, [None, "nut", None]):
        assert isinstance(failure, Failure)
        assert not isinstance(failure.error, ExpertError)
        assert "backbone" in str(failure.error)
    with pytest.raises(PredictionError, match="backbone"):
        detector.warm_up()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_prediction_can_be_made_of_a_number_that_is_not_finite(detector: Detector, number: float) -> None:
    from dataclasses import replace

    (sound,) = detector.predict(IMAGES[:1])
    assert isinstance(sound, Prediction)
    with pytest.raises(ExpertError, match="not finite"):
        replace(sound, score=number)
    with pytest.raises(ExpertError, match="not finite"):
        replace(sound, grid_map=np.where(np.eye(4) > 0, number, sound.grid_map).astype(np.float32))


def test_freed_memory_costs_no_result(checkpoint: Checkpoint) -> None:
    detector = Detector(checkpoint, device="cpu", precision="fp32")
    before = detector.predict(IMAGES)
    detector.free_memory()
    assert [each.score for each in detector.predict(IMAGES)] == [each.score for each in before]
