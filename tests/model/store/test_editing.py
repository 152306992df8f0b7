"""Products are removed, hidden and renamed, and all others stay as they are, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_model import product_image, tiny_checkpoint

from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError, TaskError, UnknownTaskError
from moleflow.model.files.exclusive import exclusive
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.editing import change_product, hide_products, remove_products, rename_product
from moleflow.model.verdict.results import Prediction

NAMES = ("bolt", "nut", "gear", "nail")
IMAGES = [product_image(kind, 50) for kind in range(len(NAMES))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors", NAMES).path


def content(checkpoint: Checkpoint, name: str) -> list[bytes]:
    """The bytes of a product's sections, tensor by tensor."""
    index = checkpoint.header.task(name).index
    parts = [checkpoint.section(f"tasks.{index}.{part}") for part in ("profile", "expert")]
    return [key.encode() + value.numpy().tobytes() for part in parts for key, value in sorted(part.items())]


def named(checkpoint: Checkpoint) -> list[str]:
    return [task.name for task in checkpoint.header.tasks]


def judged(path: Path, kind: int) -> Prediction:
    """The prediction for an image of a product that is named."""
    detector = Detector.load(path, device="cpu", precision="fp32")
    (found,) = detector.predict([IMAGES[kind]], [NAMES[kind]])
    assert isinstance(found, Prediction)
    return found


@pytest.mark.parametrize(
    ("edit", "left"),
    [
        (lambda path: remove_products(path, ["nut"]), ["bolt", "gear", "nail"]),
        (lambda path: remove_products(path, ["gear", "nut"]), ["bolt", "nail"]),
        (lambda path: hide_products(path, ["bolt"]), [*NAMES]),
        (lambda path: rename_product(path, "nut", "wing nut"), ["bolt", "wing nut", "gear", "nail"]),
    ],
)
def test_the_sections_and_the_numbers_of_all_others_stay_bit_identical(
    path: Path, edit: Callable[[Path], Checkpoint], left: list[str]
) -> None:
    old, before = Checkpoint.open(path), judged(path, 3)
    new = edit(path)
    new.verify()
    assert named(new) == left
    for name in {*left} & {*NAMES}:
        assert content(new, name) == content(old, name)
    after = judged(path, 3)
    assert np.array_equal(after.grid_map, before.grid_map)
    for number in ("score", "threshold", "pixel_threshold", "p_value"):
        assert getattr(after, number) == getattr(before, number)
    assert after.task.distance == before.task.distance
    assert list(path.parent.iterdir()) == [path]


def test_a_removed_product_takes_no_room(path: Path) -> None:
    before = path.stat().st_size
    size = sum(Checkpoint.open(path).section_bytes()[f"tasks.1.{part}"] for part in ("profile", "expert"))
    remove_products(path, ["nut"])
    assert path.stat().st_size < before - size


def test_a_renamed_product_predicts_as_before(path: Path) -> None:
    before = Detector.load(path, device="cpu", precision="fp32").predict(IMAGES)
    rename_product(path, "nut", "wing nut")
    after = Detector.load(path, device="cpu", precision="fp32").predict(IMAGES)
    assert [each.score for each in after] == [each.score for each in before]
    assert [each.novelty_score for each in after] == [each.novelty_score for each in before]
    assert after[1].task.name == "wing nut"


def test_a_hidden_product_is_neither_listed_nor_chosen_nor_named(path: Path) -> None:
    hide_products(path, ["bolt"])
    detector = Detector.load(path, device="cpu", precision="fp32")
    assert [(task.name, task.index) for task in detector.tasks] == [("nut", 0), ("gear", 1), ("nail", 2)]
    found = detector.predict(IMAGES, refuse_unknown=False)
    assert [each.task.name for each in found[1:]] == ["nut", "gear", "nail"]
    assert "bolt" not in {candidate.name for each in found for candidate in each.candidates}
    with pytest.raises(UnknownTaskError, match="learned: nut, gear, nail"):
        detector.predict(IMAGES[:1], ["bolt"])
    hide_products(path, ["bolt"], hidden=False)
    assert len(Detector.load(path, device="cpu", precision="fp32").tasks) == 4


def test_what_is_predicted_without_a_hidden_product_is_what_is_predicted_without_a_removed_one(path: Path) -> None:
    whole = path.read_bytes()
    results = []
    for edit in (remove_products, hide_products):
        path.write_bytes(whole)
        edit(path, ["gear"])
        results.append(Detector.load(path, device="cpu", precision="fp32").predict(IMAGES, refuse_unknown=False))
    for one, other in zip(*results, strict=True):
        assert (one.score, one.novelty_score, one.candidates) == (other.score, other.novelty_score, other.candidates)


def test_the_first_product_which_has_the_base_can_only_be_hidden(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TaskError, match=r"'bolt' was learned first.*hide it instead \(`moleflow remove --hide`"):
        remove_products(path, ["nut", "bolt"])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (lambda path: remove_products(path, ["cog"]), UnknownTaskError, "learned: bolt, nut, gear, nail"),
        (lambda path: hide_products(path, NAMES), TaskError, "at least one product"),
        (lambda path: rename_product(path, "cog", "wheel"), UnknownTaskError, "No product named 'cog'"),
        (lambda path: rename_product(path, "nut", "gear"), TaskError, "there is a product 'gear' already"),
        (lambda path: rename_product(path, "nut", "a/b"), TaskError, "is a path"),
    ],
)
def test_what_cannot_be_done_is_an_error_and_changes_nothing(
    path: Path, edit: Callable[[Path], Checkpoint], error: type[Exception], says: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(error, match=says):
        edit(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_product_is_renamed_and_hidden_in_one_step_or_not_at_all(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TaskError, match="already"):
        change_product(path, "bolt", new_name="nut", hidden=True)
    assert path.read_bytes() == before
    new = change_product(path, "bolt", new_name="old bolt", hidden=True)
    assert [(task.name, task.hidden) for task in new.header.tasks[:2]] == [("old bolt", True), ("nut", False)]


def test_a_checkpoint_that_another_process_writes_is_left_alone(path: Path) -> None:
    with exclusive(path), pytest.raises(ConfigurationError, match="another process"):
        remove_products(path, ["nut"])


def test_a_file_without_a_hidden_product_can_be_read_by_older_programs(path: Path) -> None:
    assert b"hidden" not in path.read_bytes()
    hide_products(path, ["nut"])
    assert path.read_bytes().count(b"hidden") == 1
