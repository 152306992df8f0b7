"""Hyperparameters are judged by pseudo-defects in held-out good images, and each row is trained once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_config

from benchmarks.accuracy import hyperparameters, pseudo_defects, trials
from benchmarks.accuracy.products import load_product
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.embeddings.extraction import EmbeddingStore
from moleflow.training.fit.trainer import TaskTrainer

START = Preset(
    name="tiny",
    description="for tests",
    model=tiny_config(),
    training=TrainingConfig(epochs=4, batch_size=4, learning_rate=1e-3, min_held_out=3, folds=1),
)


@pytest.mark.parametrize("kind", list(pseudo_defects.KINDS))
def test_a_pseudo_defect_changes_what_its_mask_marks_and_little_else(kind: str) -> None:
    image = np.asarray(Image.fromarray(product_image(3, 0)).resize((96, 80)))
    changed, mask = pseudo_defects.with_pseudo_defect(image, kind, np.random.default_rng(4))
    difference = np.abs(changed.astype(int) - image).max(-1)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert 0 < mask.mean() < (0.2 if kind in pseudo_defects.SHARP else 0.4)
    assert difference[mask].mean() > 5
    assert difference[~mask].mean() < 0.3 * difference[mask].mean()


def test_pseudo_defects_are_made_of_held_out_images_and_are_the_same_each_time(
    judged_products: Path, tmp_path: Path
) -> None:
    one, other = (load_product(judged_products, "bolt", tmp_path / part, START, 100) for part in ("a", "b"))
    assert not {*one.fit} & {*one.held_out}
    assert len(one.pseudo) == 3 * len(one.held_out)
    for sample, same in zip(one.pseudo, other.pseudo, strict=True):
        assert sample.path.read_bytes() == same.path.read_bytes()


def test_a_row_is_run_once_and_told_from_others_by_what_it_changes(
    judged_products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hyperparameters, "preset", lambda name: START)
    monkeypatch.setattr(hyperparameters, "START", {})
    chosen = ["--task", "bolt", "--task", "nut", "--setting", "start", "--setting", "ZCA"]
    command = [str(judged_products), *chosen, "--out", str(tmp_path), "--plugin", str(PLUGIN)]
    hyperparameters.main([*command, "--scoring"])
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines() if line.startswith(("| start", "| ZCA"))] == [
        "| start",
        "| ZCA",
    ]
    assert "nan" not in printed

    def fail(*_: object) -> None:
        raise AssertionError("a row that is there was run again")

    monkeypatch.setattr(trials.Bench, "run", fail)
    hyperparameters.main(command)
    assert capsys.readouterr().out in printed


def test_averaging_leaves_the_mean_of_the_last_epochs_weights() -> None:
    def trained(averaged: float, epochs: int = 4) -> list[torch.Tensor]:
        base = Base(START.model, seed=0)
        training = START.training.model_copy(update={"epochs": 4})
        trainer = TaskTrainer(
            "bolt", START.model, training, base, first=True, device=torch.device("cpu"), precision="fp32"
        )
        store = EmbeddingStore(PatchFeatures(torch.randn(8, 4, 4, 16, generator=torch.Generator().manual_seed(0))))
        if epochs < 4:
            for _ in zip(range(epochs), trainer.epochs(store), strict=False):
                pass
        else:
            trials.fit(trainer, store, averaged)
        return [parameter.detach().clone() for parameter in trainer.parameters]

    third, last, mean = trained(0, epochs=3), trained(0), trained(0.5)
    for one, other, both in zip(third, last, mean, strict=True):
        assert torch.allclose((one + other) / 2, both, atol=1e-6)
    assert not all(torch.equal(one, other) for one, other in zip(last, mean, strict=True))
