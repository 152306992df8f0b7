"""Every variant learns products one after another, is served from its checkpoint, and forgets only if it should."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from tiny_model import CAPPED, FUSED, product_image, tiny_config, tiny_expert
from variants import VARIANTS

from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError
from moleflow.model.files.exclusive import side_file
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Prediction
from moleflow.training.config import Preset
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.fit.cross_fitting import split
from moleflow.training.fit.trainer import TaskTrainer
from moleflow.training.progress import Reporter

NAMES = ("bolt", "nut", "gear")
FORGETTING = "sequential"

ALL: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "capped": {"scoring": CAPPED},
    "with memory": {"scoring": FUSED},
    "separated, with memory": {"scoring": FUSED, "sharing": "separated"},
}
"""The networks, and the ways to score by them."""

Learned = Callable[[str], tuple[Path, Path]]
"""A variant's name to its checkpoint after one product, and after three."""


def learn(data: Path, tasks: tuple[str, ...], path: Path, preset: Preset, **options: Any) -> Path:
    train_tasks(
        data,
        tasks,
        path,
        preset=preset,
        device="cpu",
        precision="fp32",
        reporter=Reporter(console=Console(quiet=True)),
        **options,
    )
    return path


def variant(preset: Preset, name: str) -> Preset:
    return preset.model_copy(update={"model": tiny_config(**ALL[name])})


def predictions(path: Path, name: str) -> list[Prediction]:
    """Of four images that nobody has seen, with the product named."""
    kind = NAMES.index(name)
    detector = Detector.load(path, device="cpu", precision="fp32")
    found = detector.predict([product_image(kind, seed) for seed in range(20, 24)], [name] * 4)
    return cast(list[Prediction], found)


def section(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The base, or both sections of ``tasks.INDEX``."""
    checkpoint = Checkpoint.open(path)
    if name == "base":
        return checkpoint.section(name)
    return checkpoint.section(f"{name}.profile") | checkpoint.section(f"{name}.expert")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def learned(products: Path, tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """Makes, once for each variant, the checkpoint after one product and after three."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("variant")
            preset = variant(tiny_preset, name)
            last = learn(products, NAMES[:1], folder / "all.safetensors", preset)
            first = folder / "first.safetensors"
            first.write_bytes(last.read_bytes())
            made[name] = first, learn(products, NAMES[1:], last, preset)
        return made[name]

    return make


@pytest.mark.parametrize("name", ALL)
def test_older_products_move_only_where_the_base_learns_on(learned: Learned, name: str) -> None:
    first, last = learned(name)
    for before, after in zip(predictions(first, "bolt"), predictions(last, "bolt"), strict=True):
        assert (before.grid_map == after.grid_map).all() == (name != FORGETTING)
        assert (before.score == after.score) == (name != FORGETTING)
    assert same(section(first, "tasks.0"), section(last, "tasks.0"))
    assert same(section(first, "base"), section(last, "base")) == (name != FORGETTING)


@pytest.mark.parametrize("name", ALL)
def test_a_variant_is_served_from_its_checkpoint(learned: Learned, name: str) -> None:
    _, last = learned(name)
    Checkpoint.open(last).verify()
    detector = Detector.load(last, device="cpu", precision="fp32")
    found = detector.predict([product_image(kind, 30) for kind in (2, 0, 1)])
    assert [prediction.task.name for prediction in found] == ["gear", "bolt", "nut"]
    # Of the three experts' scores for one image no two are alike: each task has its own.
    scores = {detector.predict([product_image(0, 30)], [product])[0].score for product in NAMES}
    assert len(scores) == 3


@pytest.mark.parametrize("name", ALL)
def test_the_held_out_scores_are_those_that_prediction_gives(
    learned: Learned, products: Path, tiny_preset: Preset, name: str
) -> None:
    _, last = learned(name)
    scores = section(last, "tasks.2")["held_out.scores"]
    images = load_category(products, "gear").train
    (fold,) = split("gear", len(images), tiny_preset.training).folds
    held_out = [images[row] for row in fold]
    detector = Detector.load(last, device="cpu", precision="fp32")
    again = detector.predict([read_image(path) for path in held_out], ["gear"] * len(held_out))
    assert sorted(prediction.score for prediction in again) == pytest.approx(scores.tolist(), rel=1e-5)


def test_a_separated_product_is_learned_as_if_it_were_alone(
    learned: Learned,
    products: Path,
    tmp_path: Path,
    tiny_preset: Preset,
) -> None:
    _, together = learned("separated")
    alone = learn(products, ("gear",), tmp_path / "alone.safetensors", variant(tiny_preset, "full"))
    base = {f"base.{key}": value for key, value in section(alone, "base").items()}
    assert same(section(together, "tasks.2"), section(alone, "tasks.0") | base)
    assert not section(together, "base")


def test_parameters_of_a_task_are_counted_with_what_it_brings(learned: Learned) -> None:
    counted = {name: Checkpoint.open(learned(name)[1]).header.tasks[1].parameters for name in VARIANTS}
    base = sum(value.numel() for value in section(learned("full")[1], "base").values())
    assert counted["separated"] == counted["full"] + base
    assert counted["sequential"] == counted["no mixer"] == counted["full"]
    assert counted["no scale context"] < counted["full"] < counted["linear"]


def test_a_sequential_fit_that_was_stopped_goes_on_and_ends_with_the_same_weights(
    learned: Learned,
    products: Path,
    tmp_path: Path,
    tiny_preset: Preset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StoppedError(Exception):
        """Stands for the power cut."""

    plain = TaskTrainer.step

    def step(self: TaskTrainer, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.name == "nut" and self.epoch == 1:
            raise StoppedError
        return plain(self, *args)

    path, preset = tmp_path / "factory.safetensors", variant(tiny_preset, "sequential")
    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "step", step)
        with pytest.raises(StoppedError):
            learn(products, NAMES, path, preset)
    assert side_file(path, ".training").is_file()
    learn(products, NAMES, path, preset)
    _, expected = learned("sequential")
    for part in ("base", "tasks.0", "tasks.1", "tasks.2"):
        assert same(section(path, part), section(expected, part)), part


@pytest.mark.parametrize(
    ("name", "product", "refused"),
    [
        ("sequential", "nut", "the base of this checkpoint learns with every task"),
        ("full", "bolt", "the base with it"),
        ("separated", "bolt", None),
    ],
)
def test_a_product_can_be_replaced_only_where_no_other_stands_on_its_base(
    learned: Learned,
    products: Path,
    tmp_path: Path,
    tiny_preset: Preset,
    name: str,
    product: str,
    refused: str | None,
) -> None:
    _, last = learned(name)
    path = tmp_path / "factory.safetensors"
    path.write_bytes(last.read_bytes())
    preset = variant(tiny_preset, name).with_changes(backbone={}, training={"seed": 5})
    if refused is not None:
        with pytest.raises(ConfigurationError, match=refused):
            learn(products, (product,), path, preset, replace=True)
        assert path.read_bytes() == last.read_bytes()
        return
    learn(products, (product,), path, preset, replace=True)
    assert [same(section(path, f"tasks.{index}"), section(last, f"tasks.{index}")) for index in range(3)] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("folds", [1, 3])
def test_experts_stored_in_half_the_bytes_are_calibrated_and_served_as_they_are_stored(
    products: Path, tmp_path: Path, tiny_preset: Preset, folds: int
) -> None:
    preset = tiny_preset.with_changes(model={"expert_dtype": "bfloat16"}, training={"folds": folds})
    path = learn(products, NAMES[:2], tmp_path / "half.safetensors", preset)
    whole = learn(products, NAMES[:2], tmp_path / "whole.safetensors", tiny_preset)
    sizes, usual = Checkpoint.open(path).section_bytes(), Checkpoint.open(whole).section_bytes()
    for index in range(2):
        stored = Checkpoint.open(path).section(f"tasks.{index}.expert")
        assert {value.dtype for value in stored.values()} == {torch.bfloat16}
        assert 2 * sizes[f"tasks.{index}.expert"] == usual[f"tasks.{index}.expert"]
    assert sizes["base"] == usual["base"]
    if folds == 1:  # otherwise temporary experts scored the images, and are gone
        images = load_category(products, "nut").train
        (fold,) = split("nut", len(images), preset.training).folds
        detector = Detector.load(path, device="cpu", precision="fp32")
        again = detector.predict([read_image(images[row]) for row in fold], ["nut"] * len(fold))
        expected = section(path, "tasks.1")["held_out.scores"].tolist()
        assert sorted(each.score for each in again) == pytest.approx(expected, rel=1e-5)


def test_rounding_moves_an_expert_no_further_than_the_type_is_coarse_and_no_more_the_second_time() -> None:
    expert = tiny_expert(tiny_config())
    before = {key: value.clone() for key, value in expert.state_dict().items()}
    expert.round_to(torch.bfloat16)
    once = {key: value.clone() for key, value in expert.state_dict().items()}
    assert not same(once, before)
    assert all(torch.allclose(once[key], value, rtol=2**-8, atol=0) for key, value in before.items())
    expert.round_to(torch.bfloat16)
    assert same(dict(expert.state_dict()), once)
