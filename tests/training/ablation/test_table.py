"""The table of a study: differences to the first row, published results, and forgetting."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_studies import PAIR, PRESET, SHARING, TASKS, ablation

from moleflow.training.ablation.runner import RowResult
from moleflow.training.ablation.studies import Row, Study
from moleflow.training.ablation.table import StudyTable


def test_forgetting_is_the_mean_drop_of_earlier_tasks_and_only_a_sequential_base_forgets(
    data: Path, tmp_path: Path
) -> None:
    results = ablation(data, tmp_path, PRESET.with_changes(training={"learning_rate": 0.03})).run(SHARING)
    (_, frozen), (_, sequential) = results
    assert frozen.at_end is not None and sequential.at_end is not None
    assert frozen.after_learning is not None and sequential.after_learning is not None
    for result in (frozen, sequential):
        assert [metrics.name for metrics in result.after_learning] == list(TASKS)
    document = StudyTable(SHARING, results).document()
    kept, moved = document["rows"]
    scores = [
        [each.model_dump(exclude={"routing"}) for each in which or ()]
        for which in (frozen.after_learning, frozen.at_end)
    ]
    assert scores[0] == scores[1]
    # With products named: routing would change the first product's metrics although nothing was forgotten.
    assert frozen.categories[0].routing < 1
    assert frozen.categories[0].pixel_ap != frozen.at_end[0].pixel_ap
    assert kept["forgetting"] == {"image_auroc": 0.0, "pixel_ap": 0.0}
    before, after = sequential.after_learning[0], sequential.at_end[0]
    assert before.pixel_ap is not None and after.pixel_ap is not None
    assert moved["forgetting"]["pixel_ap"] == before.pixel_ap - after.pixel_ap
    assert moved["forgetting"]["pixel_ap"] != 0


def test_forgetting_that_was_not_measured_is_not_shown(
    finished: tuple[Path, list[tuple[Row, RowResult]]],
) -> None:
    _, results = finished
    unmeasured = [(row, result.model_copy(update={"after_learning": None})) for row, result in results]
    table = StudyTable(Study("x", "X", PAIR.rows, forgetting=True), unmeasured)
    assert {value for row in table.document()["rows"] for value in row["forgetting"].values()} == {None}
    assert table.cells()[0][6:8] == ["–", "–"]


def test_the_table_has_differences_to_the_first_row_and_published_results(
    finished: tuple[Path, list[tuple[Row, RowResult]]],
) -> None:
    table = StudyTable(PAIR, finished[1])
    full, other = table.document()["rows"]
    assert set(full["delta"].values()) == {0.0}
    assert other["delta"]["pixel_ap"] == pytest.approx(other["mean"]["pixel_ap"] - full["mean"]["pixel_ap"])
    metrics = finished[1][1][1].categories
    assert other["mean"]["pixel_ap"] == pytest.approx(np.mean([each.pixel_ap for each in metrics]))
    assert other["parameters_per_later_task"] == finished[1][1][1].parameters[1]
    lines = table.markdown().splitlines()
    assert lines[0] == "### Two rows (`pair`)"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert [line for line in lines if line.startswith("| w/o mixer")]
    assert "- w/o mixer: a note." in lines
    assert "bolt → nut" in table.markdown()
    assert json.loads(json.dumps(table.document())) == table.document()
