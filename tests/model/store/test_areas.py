"""A product inspects a part of its images, all others stay as they are, and clearing the area restores the file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tiny_model import FUSED, product_image, tiny_checkpoint, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError, TaskError, UnknownTaskError
from moleflow.model.files.exclusive import exclusive
from moleflow.model.store.areas import set_area
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.editing import rewrite
from moleflow.model.verdict.area import Area, Outlines
from moleflow.model.verdict.calibration import Calibration
from moleflow.model.verdict.masking import cut_grid
from moleflow.model.verdict.results import Prediction

NAMES = ("bolt", "nut", "gear")
RIGHT_HALF = Outlines(ignore=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),))
RIGHT = np.broadcast_to(np.arange(4) >= 2, (4, 4))
IMAGES = [product_image(kind, 50 + seed) for seed in range(2) for kind in range(3)]
TASKS = [NAMES[kind] for _ in range(2) for kind in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors", NAMES).path


def judged(path: Path) -> list[Prediction]:
    return Detector.load(path, device="cpu", precision="fp32").predict(IMAGES, TASKS, refuse_unknown=False)


def inspected(path: Path) -> list[list[bool]]:
    """The patches that the nut's prediction inspects."""
    mask = judged(path)[1].inspected
    assert mask is not None
    return mask.tolist()


def scores(low: float, count: int = 6) -> Mapping[str, np.ndarray]:
    return {key: low + np.arange(count, dtype=np.float32) for key in ("scores", "peaks")}


@pytest.mark.parametrize("scoring", [None, FUSED])
def test_the_product_is_scored_in_its_area_and_others_of_the_batch_stay_bit_identical(
    tmp_path: Path, scoring: object
) -> None:
    config = tiny_config(scoring=scoring)  # type: ignore[arg-type]
    path = tiny_checkpoint(tmp_path / "factory.safetensors", NAMES, config).path
    before = judged(path)
    set_area(path, "nut", RIGHT_HALF).verify()
    for name, old, new in zip(TASKS, before, judged(path), strict=True):
        assert new.candidates == old.candidates
        assert (new.novelty_score, new.threshold) == (old.novelty_score, old.threshold)
        if name == "nut":
            assert np.array_equal(new.grid_map, cut_grid(old.grid_map, RIGHT))
            assert new.score == pytest.approx(np.sort(old.grid_map[RIGHT])[-3:].mean(), rel=1e-6)
        else:
            assert new.inspected is None
            assert new.score == old.score
            assert np.array_equal(new.grid_map, old.grid_map)


def test_only_the_header_changes_and_clearing_the_area_restores_every_byte(path: Path) -> None:
    before, digests = path.read_bytes(), Checkpoint.open(path).header.digests()
    assert b"area" not in before
    new = set_area(path, "nut", RIGHT_HALF)
    assert new.header.digests() == digests
    assert path.read_bytes().count(b"ignore") == 1
    changed = {key for key, value in new.header.tasks[1] if value is not None and key.endswith("area")}
    assert changed == {"area"}
    set_area(path, "nut", None)
    assert path.read_bytes() == before


def test_good_images_within_the_area_calibrate_it_and_the_earlier_ones_come_back_with_the_whole_image(
    path: Path,
) -> None:
    old = Checkpoint.open(path)
    new = set_area(path, "nut", RIGHT_HALF, lambda task, profile: scores(3))
    new.verify()
    task, limit = new.header.tasks[1], Calibration.fit(3.0 + np.arange(6)).threshold(0.01)
    assert task.area is not None
    assert task.area.calibration_images == 6
    assert task.threshold == task.pixel_threshold == limit
    assert task.parameters == old.header.tasks[1].parameters + 12
    found = judged(path)[1]
    assert found.threshold == found.pixel_threshold == limit
    profiles = [each.section("tasks.1.profile") for each in (old, new)]
    assert all(np.array_equal(profiles[0][key], profiles[1][key]) for key in profiles[0])
    set_area(path, "nut", None)
    assert Checkpoint.open(path).header == old.header


def test_another_area_is_not_calibrated_by_the_images_of_the_one_before(path: Path) -> None:
    whole = Checkpoint.open(path).header.tasks[1].threshold
    set_area(path, "nut", RIGHT_HALF, lambda task, profile: scores(3))
    task = set_area(path, "nut", Outlines(ignore=RIGHT_HALF.ignore, inspect=RIGHT_HALF.ignore[:0])).header.tasks[1]
    assert task.area is not None
    assert task.area.calibration_images is None
    assert task.threshold == whole


def test_the_new_area_is_known_while_good_images_are_scored(path: Path) -> None:
    seen: list[Area | None] = []
    set_area(path, "nut", RIGHT_HALF, lambda task, profile: seen.append(task.area) or scores(3))
    assert seen[0] is not None
    assert seen[0].patches == ("0011",) * 4


def test_a_product_never_inspects_more_than_it_was_learned_from(path: Path) -> None:
    old = Checkpoint.open(path)
    tasks = list(old.header.tasks)
    tasks[1] = tasks[1].model_copy(update={"learned_area": Area.of(RIGHT)})
    rewrite(old, tasks)
    assert inspected(path) == RIGHT.tolist()
    lower = Outlines(ignore=(((0, 0), (1, 0), (1, 0.5), (0, 0.5)),))
    area = set_area(path, "nut", lower).header.tasks[1].area
    assert area is not None
    assert area.patches == ("0000", "0000", "0011", "0011")
    set_area(path, "nut", None)
    assert inspected(path) == RIGHT.tolist()


def test_an_area_of_another_grid_fails_the_images_of_its_product_only(path: Path) -> None:
    old = Checkpoint.open(path)
    tasks = list(old.header.tasks)
    tasks[1] = tasks[1].model_copy(update={"area": Area.of(np.eye(5, dtype=bool))})
    rewrite(old, tasks)
    first, second, _ = Detector.load(path, device="cpu", precision="fp32").predict(IMAGES[:3], TASKS[:3])
    assert isinstance(first, Prediction)
    with pytest.raises(Exception, match=r"5 × 5 patches, and its images 4 × 4.*`moleflow area`"):
        second.verdict  # noqa: B018


def test_what_cannot_be_done_is_an_error_and_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    everything = Outlines(ignore=(((0, 0), (1, 0), (1, 1), (0, 1)),))
    with pytest.raises(TaskError, match="inspects 0 of 4 × 4 patches"):
        set_area(path, "nut", everything)
    with pytest.raises(UnknownTaskError):
        set_area(path, "cog", RIGHT_HALF)
    with exclusive(path), pytest.raises(ConfigurationError, match="another process"):
        set_area(path, "nut", RIGHT_HALF)
    assert path.read_bytes() == before
