"""The study of scorings judges its variants on tiny products, and the cost of a memory is measured."""

from pathlib import Path

import pytest
from tiny_model import FUSED, PLUGIN, tiny_config

from benchmarks.accuracy import scoring
from benchmarks.speed import memory_cost
from moleflow.model.features.backbone import import_plugin
from moleflow.training.config import Preset, TrainingConfig

START = Preset(
    name="fast",
    description="for tests",
    model=tiny_config(scoring=FUSED),
    training=TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, min_held_out=3, folds=1),
)


def test_every_variant_is_judged_once_on_each_product(
    judged_products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring, "preset", lambda name: START)
    chosen = ["flow, NLL", "flow, c = 3", "memory alone", "fused, c = 4"]
    names = ["--task", "bolt", "--task", "nut"]
    command = [str(judged_products), *names, "--out", str(tmp_path), "--plugin", str(PLUGIN)]
    assert scoring.main([*command, *(part for name in chosen for part in ("--variant", name))]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith(("| bolt", "| nut", "| **mean**"))]
    assert [row[1] for row in rows] == 3 * chosen
    assert "- sharp: " in printed
    maps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()}
    assert scoring.main([*command, "--variant", "fused, c = 4"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()} == maps


def test_agreement_is_that_of_the_orders() -> None:
    def figures(value: float) -> dict[str, float]:
        return {"image_auroc": value, "pixel_ap": value}

    found = {
        name: {"sharp": figures(sharp), "faint": figures(-sharp), "test": figures(test)}
        for name, sharp, test in (("a", 1.0, 10.0), ("b", 2.0, 20.0), ("c", 3.0, 90.0))
    }
    assert scoring.agreement(found)["sharp"] == pytest.approx(1)
    assert scoring.agreement(found)["faint"] == pytest.approx(-1)


def test_the_cost_of_a_memory_is_a_ratio_within_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_plugin(str(PLUGIN))
    monkeypatch.setattr(memory_cost, "preset", lambda name: START)
    status = memory_cost.main(["--precision", "fp32", "--batch", "1", "--batch", "2", "--rounds", "3"])
    printed = capsys.readouterr().out
    assert "| fp32 | 1 |" in printed
    assert "| fp32 | 2 |" in printed
    assert status == int("**fails**" in printed)
