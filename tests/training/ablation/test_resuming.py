"""A study continues after an interruption, and what is finished is not run again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_studies import ALONE, PAIR, PRESET, SCORING, Counter, ablation, checkpoints

from moleflow.model.files.exclusive import side_file
from moleflow.training.ablation import runner as module
from moleflow.training.ablation.runner import RowResult
from moleflow.training.ablation.studies import Row
from moleflow.training.fit.trainer import TaskTrainer


def test_a_repeated_study_runs_nothing_and_gives_the_same_results(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = finished
    counter = Counter(monkeypatch)
    monkeypatch.setattr(module, "CachedEvaluation", None)  # would fail if it were used
    assert ablation(data, out).run(PAIR) == results
    assert counter.fits == []


class StoppedError(Exception):
    """Simulates a kill."""


@pytest.mark.parametrize(("task", "epoch"), [("bolt", 1), ("nut", 0), ("nut", 1)])
def test_a_study_killed_inside_a_row_resumes_to_the_same_result(
    data: Path,
    finished: tuple[Path, list[tuple[Row, RowResult]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    epoch: int,
) -> None:
    plain = TaskTrainer.step

    def step(self: TaskTrainer, embeddings: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        if (self.name, self.epoch) == (task, epoch):
            raise StoppedError
        return plain(self, embeddings, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "step", step)
        with pytest.raises(StoppedError):
            ablation(data, tmp_path).run(ALONE)
    ((_, found),), (_, expected) = ablation(data, tmp_path).run(ALONE), finished[1][0]
    assert found.categories == expected.categories
    assert found.digest == expected.digest
    (checkpoint,) = checkpoints(tmp_path)
    history = side_file(checkpoint, ".history.jsonl").read_text().splitlines()
    epochs = [entry for entry in map(json.loads, history) if entry["event"] == "epoch"]
    assert len(epochs) == 4
    assert all(entry["seconds"] > 0 for entry in epochs)


def test_a_study_killed_before_an_evaluation_trains_nothing_again(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(module, "CachedEvaluation", stop)
        with pytest.raises(StoppedError):
            ablation(data, tmp_path, PRESET.with_changes(flow={"spatial_context_kernel": 5})).run(SCORING)
    counter = Counter(monkeypatch)
    ablation(data, tmp_path, PRESET.with_changes(flow={"spatial_context_kernel": 5})).run(SCORING)
    assert counter.fits == ["nut"]  # bolt was trained already; the kill came before its evaluation


@pytest.mark.parametrize("damage", ["", '{"digest":', "[" * 10_000, "null", "\udcff"])
def test_a_damaged_result_is_measured_again_without_training(
    data: Path,
    finished: tuple[Path, list[tuple[Row, RowResult]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    out, expected = finished
    shutil.copytree(out, tmp_path / "out")
    for path in (tmp_path / "out" / "results").iterdir():
        path.write_text(damage, errors="surrogateescape")
    for path in (tmp_path / "out").glob("runs/*/*.history.jsonl"):
        path.write_text('null\n{"event": "epoch"}\n[]\n' + path.read_text() + '{"event": "epo')
    counter = Counter(monkeypatch)
    ((_, again),) = ablation(data, tmp_path / "out").run(ALONE)
    assert counter.fits == []
    assert again.categories == expected[0][1].categories
