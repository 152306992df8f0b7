"""Plain training computes the same as ours, and the benchmark's ratios and gates are right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import PLUGIN, tiny_config

from benchmarks.speed import plain_training, training_speed
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.training.config import Preset, TrainingConfig

TINY = Preset(
    name="tiny",
    description="for tests",
    model=tiny_config(),
    training=TrainingConfig(epochs=3, batch_size=4),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    import_plugin(str(PLUGIN))
    monkeypatch.setattr(training_speed, "PRESETS", {"main": TINY, "fast": TINY})
    monkeypatch.setattr(training_speed, "random_backbone", lambda config: Backbone.pretrained(config))


def test_the_plain_way_runs_the_backbone_for_every_batch() -> None:
    features = FeatureExtractor(TINY.model, Backbone.pretrained(TINY.model.backbone))
    runs: list[int] = []
    features.register_forward_hook(lambda module, given, values: runs.append(len(values)))
    images = training_speed.synthetic_images(5, 32)
    with plain_training.PlainFeatures(features, images) as store:
        whole = store.batch(torch.arange(5), training_speed.CPU)
        part = store.subset([4, 1]).batch(torch.tensor([1, 0]), training_speed.CPU)
    assert runs == [5, 2]
    assert torch.allclose(part, whole[[1, 4]], atol=1e-5)


def test_images_are_of_one_kind_and_the_same_each_time() -> None:
    one, other = training_speed.synthetic_images(2, 32), training_speed.synthetic_images(2, 32)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0], one[1])
    assert {image.shape for image in one} == {(32, 32, 3)}


@pytest.mark.parametrize("first", [True, False])
def test_both_ways_come_to_the_same_from_the_same_seed(first: bool) -> None:
    found = {way: training_speed.short_training(TINY, way, first=first, images=6) for way in ("ours", "plain")}
    assert found["ours"]["nll"] == pytest.approx(found["plain"]["nll"], rel=0.01)
    assert all(each["peak_bytes"] > 2**20 for each in found.values())


def test_embedding_once_is_spread_over_the_epochs() -> None:
    times = {"embedding": [10.0, 20.0], "ours": [5.0, 5.0], "plain": [30.0, 40.0]}
    assert training_speed.whole(times, 1) == [2.0, 1.6]
    assert training_speed.whole(times, 10) == [5.0, pytest.approx(400 / 70)]


@pytest.mark.parametrize(
    ("plain_ms", "plain_nll", "expected"),
    [(21.0, 1.0, [True, True]), (19.0, 1.0, [False, True]), (21.0, 1.02, [True, False])],
)
def test_the_gates_are_the_whole_trainings_ratio_and_the_likelihood(
    plain_ms: float, plain_nll: float, expected: list[bool]
) -> None:
    times = {"embedding": [3.0], "ours": [4.9], "plain": [plain_ms]}
    result = {"ms_per_image": times, "epochs": 60, "short": {"ours": {"nll": 1.0}, "plain": {"nll": plain_nll}}}
    assert [gate.passed for gate in training_speed.gates(result)] == expected


def test_everything_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(options: training_speed.argparse.Namespace, way: str) -> dict[str, float]:
        return training_speed.short_training(TINY, way, first=not options.later, images=options.images)

    monkeypatch.setattr(training_speed, "in_a_process", in_this_process)
    output = tmp_path / "speed.json"
    status = training_speed.main(["--later", "--rounds", "3", "--images", "4", "--output", str(output)])
    result = json.loads(output.read_text())
    assert status == (0 if all(gate.passed for gate in training_speed.gates(result)) else 1)
    assert {name: len(values) for name, values in result["ms_per_image"].items()} == {
        "embedding": 3,
        "ours": 3,
        "plain": 3,
    }
    assert (result["first"], result["batch_size"], result["epochs"]) == (False, 4, 3)
    assert "| whole training, 3 epochs |" in output.with_suffix(".md").read_text()
    assert "speed-up of a whole training" in capsys.readouterr().out


def test_one_short_training_is_reported_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_speed.main(["--way", "ours", "--images", "4", "--epochs", "1"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"nll", "peak_bytes"}
