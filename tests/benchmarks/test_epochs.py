"""Numbers of epochs are compared by whole trainings, each run once, and reported by product and in the mean."""

from pathlib import Path
from typing import Any

import pytest
from tiny_model import PLUGIN, tiny_config

from benchmarks.accuracy import epochs, trials
from benchmarks.accuracy.judging import COLUMNS
from moleflow.training.config import Preset, TrainingConfig, preset
from moleflow.training.fit.trainer import TaskTrainer

START = Preset(
    name="tiny",
    description="for tests",
    model=tiny_config(),
    training=TrainingConfig(epochs=4, batch_size=4, learning_rate=1e-3, min_held_out=3),
)


def figures(value: float) -> dict[str, float]:
    names = [f"{kind}_{column}" for kind in ("pseudo", "test") for column in COLUMNS]
    return {"seconds": value, "held_out_nll": value, **dict.fromkeys(names, value)}


def test_the_presets_own_number_of_epochs_is_among_those_tried() -> None:
    for name in ("main", "fast", "small"):
        start = preset(name)
        assert start.training.epochs in epochs.budgets(start)


def test_each_product_has_its_rows_and_the_mean_is_over_products_and_seeds() -> None:
    one, other = {"a": figures(1.0), "b": figures(2.0)}, {"a": figures(3.0), "b": figures(6.0)}
    lines = epochs.table([(4, [one, other])]).splitlines()[2:]
    assert [line.split(" | ")[2] for line in lines] == ["2.000", "4.000", "3.000"]


def test_a_number_of_epochs_is_a_training_of_its_own_and_run_once(
    judged_products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(epochs, "preset", lambda name: START)
    lengths: list[int] = []
    fit = trials.fit

    def counted(trainer: TaskTrainer, *rest: Any) -> None:
        lengths.append(trainer.training.epochs)
        fit(trainer, *rest)

    monkeypatch.setattr(trials, "fit", counted)
    tasks = ["--task", "bolt", "--task", "nut"]
    command = [str(judged_products), *tasks, "--out", str(tmp_path), "--plugin", str(PLUGIN)]
    epochs.main([*command, "--epochs", "1", "--epochs", "3"])
    printed = capsys.readouterr().out
    assert lengths == [1, 1, 3, 3]
    epochs.main([*command, "--epochs", "1", "--epochs", "3", "--epochs", "2"])
    assert lengths == [1, 1, 3, 3, 2, 2]
    assert {*printed.splitlines()} <= {*capsys.readouterr().out.splitlines()}
    epochs.main([*command, "--epochs", "3", "--epochs", "5", "--table"])
    assert [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines()[2:]] == ["3", "3", "3"]
    assert len(lengths) == 6
