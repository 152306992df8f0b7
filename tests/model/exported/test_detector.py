"""An exported folder gives the checkpoint's own results, without PyTorch."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import product_image

from moleflow.model.detector import Detector
from moleflow.model.errors import ExpertError, UnknownTaskError
from moleflow.model.exported.detector import ExportedDetector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Failure, Finding, Prediction

NOISE = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
DEFECT = product_image(1, 90, side=64)
DEFECT[10:30, 20:40] = 255
DEEP = product_image(2, 91).astype(np.uint16) * 16
IMAGES = [*(product_image(kind, 80 + kind) for kind in (0, 2, 1, 0)), DEFECT, NOISE, DEEP]


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportedDetector:
    return ExportedDetector.load(folder)


@pytest.fixture(scope="module")
def original(source: Checkpoint) -> Detector:
    return Detector.load(source.path, device="cpu", precision="fp32", engine="torch")


def assert_same(found: Sequence[Finding | Failure], expected: Sequence[Finding | Failure]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, type(other))
        assert not isinstance(one, Failure)
        assert not isinstance(other, Failure)
        assert one.verdict == other.verdict
        assert [each.name for each in one.candidates] == [each.name for each in other.candidates]
        assert one.novelty_score == pytest.approx(other.novelty_score, rel=1e-4)
        assert (one.white_level, one.warnings) == (other.white_level, other.warnings)
        if isinstance(one, Prediction) and isinstance(other, Prediction):
            assert one.score == pytest.approx(other.score, rel=1e-4)
            assert one.p_value == pytest.approx(other.p_value, rel=1e-3)
            assert np.abs(one.pixel_map() - other.pixel_map()).max() <= 1e-4 * np.abs(other.pixel_map()).max()
            assert len(one.regions(50, 60)) == len(other.regions(50, 60))
            assert (one.inspected is None) == (other.inspected is None)


def test_scores_maps_routes_verdicts_and_refusals_are_those_of_the_checkpoint(
    exported: ExportedDetector, original: Detector
) -> None:
    found, expected = exported.predict(IMAGES), original.predict(IMAGES)
    assert {each.verdict.value for each in expected} == {"good", "unknown_product"}
    assert_same(found, expected)


def test_a_named_product_scores_the_image_and_nothing_is_refused_on_request(
    exported: ExportedDetector, original: Detector
) -> None:
    names = ["gear", None, "bolt", None, "nut", "nut", None]
    assert_same(exported.predict(IMAGES, names), original.predict(IMAGES, names))
    everything = exported.predict(IMAGES, refuse_unknown=False)
    assert any(isinstance(each, Prediction) and each.inspected is not None for each in everything)
    assert_same(everything, original.predict(IMAGES, refuse_unknown=False))


def test_rates_and_products_are_those_of_the_checkpoint(folder: Path, source: Checkpoint) -> None:
    rates: dict[str, Any] = {"false_alarm_rate": 0.2, "unknown_limit": 1e-6}
    lax, original = ExportedDetector.load(folder, **rates), Detector(source, device="cpu", precision="fp32", **rates)
    assert lax.tasks == original.tasks
    assert lax.preprocessing == original.preprocessing
    assert_same(lax.predict(IMAGES[:3]), original.predict(IMAGES[:3]))


def test_an_image_has_the_same_result_in_every_batch_and_thread(exported: ExportedDetector) -> None:
    expected = exported.predict(IMAGES)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda image: exported.predict([image])[0], IMAGES * 2))
    assert_same(alone, expected * 2)


def test_no_image_is_a_batch_too(exported: ExportedDetector) -> None:
    assert exported.predict([]) == []


def test_an_unknown_name_is_an_error(exported: ExportedDetector) -> None:
    with pytest.raises(UnknownTaskError, match=r"No product named 'screw' was learned; learned: bolt, nut, gear\."):
        exported.predict(IMAGES[:1], ["screw"])


def test_experts_are_compiled_when_first_used_and_a_bounded_number_is_kept(folder: Path) -> None:
    small = ExportedDetector.load(folder)
    small._experts.limit = 1
    expected = small.predict(IMAGES)
    assert len(small._experts._kept) == 1
    small.free_memory()
    assert not small._experts._kept
    assert_same(small.predict(IMAGES), expected)


def test_a_damaged_expert_fails_the_images_of_its_product_only(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "experts" / "1.bin"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1, *weights.read_bytes()[1:]]))
    detector = ExportedDetector.load(copy)
    detector.warm_up(2)
    first, _, damaged, *_ = detector.predict(IMAGES)
    assert first.verdict == "good"
    assert isinstance(damaged, Failure)
    assert "'nut'" in str(damaged.error)
    assert "differs from what was written" in str(damaged.error)
    with pytest.raises(ExpertError):
        detector.predict(IMAGES, refuse_unknown=False)


def test_with_every_expert_damaged_it_does_not_start(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.glob("experts/*.xml"):
        path.write_text(path.read_text().replace("<net", "<Net", 1))
    with pytest.raises(ExpertError, match="differs from what was written"):
        ExportedDetector.load(copy).warm_up()
