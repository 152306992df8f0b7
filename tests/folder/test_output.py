"""Files of rows: formats, continuing, repair, and what is never overwritten."""

import contextlib
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from moleflow.folder.output import Output, open_output
from moleflow.folder.rows import COLUMNS, FileState, Known
from moleflow.model.errors import ConfigurationError
from moleflow.service.responses.schemas import PredictionResponse

ANSWER = {
    "verdict": "anomalous",
    "task": {"name": 'bolt, "M8"', "index": 0},
    "routing": {"distance": 2.5, "margin": None, "candidates": [], "novelty_score": 0.1, "forced": False},
    "score": 0.1 + 0.2,
    "p_value": 1e-17,
    "threshold": -1.0,
    "false_alarm_rate": 0.01,
    "is_anomalous": True,
    "pixel_threshold": 2.0,
    "regions": [
        {"x": 1, "y": 2, "width": 3, "height": 4, "area_fraction": 0.5, "peak": 9.5, "peak_x": 2, "peak_y": 3},
    ],
    "anomaly_map": None,
    "warnings": ["odd"],
    "image": {"width": 30, "height": 20},
    "checkpoint": {"name": "factory.safetensors", "digest": "12ab"},
    "timing_ms": {"decode": 1.0, "queue": 0.0, "inference": 2.0, "encode": 0.5},
}
PREDICTED = {"path": "a.png", "file": {"size": 5, "modified": 1.25}, "error": None, **ANSWER}
FAILED = {
    "path": "line\nbreak.png",
    "file": {"size": 2, "modified": 3.5},
    "error": {"type": "urn:moleflow:problem:unsupported-image", "detail": "no image"},
    "checkpoint": ANSWER["checkpoint"],
}
ROWS = (PREDICTED, FAILED, PREDICTED | {"path": "c.png"})
FORMATS = ("rows.csv", "rows.jsonl", "rows.parquet")
TEXT = FORMATS[:2]


def write(path: Path, rows: Iterable[Any] = ROWS, *, finish: bool = True) -> list[Known]:
    """Append rows; returns what was there before."""
    with contextlib.closing(open_output(path)) as output:
        known = list(output.known())
        output.append(rows)
        if finish:
            output.finish()
    return known


def known(path: Path) -> list[Known]:
    return write(path, (), finish=False)


def test_the_example_is_an_answer_of_the_api() -> None:
    PredictionResponse.model_validate(ANSWER)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_are_there_are_recognised(tmp_path: Path, name: str) -> None:
    assert write(tmp_path / name) == []
    first, second, third = known(tmp_path / name)
    assert first == Known("a.png", FileState(5, 1.25), None, "anomalous", "12ab", 0.01, False, 'bolt, "M8"')
    assert (second.path, second.error, second.verdict) == ("line\nbreak.png", FAILED["error"]["type"], None)  # type: ignore[index]
    assert third.path == "c.png"


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_added_to_those_that_are_there(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    write(tmp_path / name, [PREDICTED | {"path": "d.png"}])
    assert [each.path for each in known(tmp_path / name)] == ["a.png", "line\nbreak.png", "c.png", "d.png"]


def test_csv_has_every_field_of_the_answer_in_a_column(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second, _ = csv.DictReader(file)
    assert list(first) == [column.name for column in COLUMNS]
    assert float(first["score"]) == 0.1 + 0.2
    assert (first["task_name"], first["is_anomalous"], first["routing_margin"]) == ('bolt, "M8"', "true", "")
    assert json.loads(first["regions"]) == ANSWER["regions"]
    assert (second["path"], second["error_detail"], second["score"]) == ("line\nbreak.png", "no image", "")


def test_jsonl_holds_the_answers_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == list(ROWS)


def test_parquet_has_typed_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write(tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == [column.name for column in COLUMNS]
    assert table["score"].to_pylist() == [0.1 + 0.2, None, 0.1 + 0.2]
    assert table["is_anomalous"].to_pylist() == [True, None, True]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_rows_of_a_parquet_file_survive_a_kill_before_the_end(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    write(tmp_path / "rows.parquet", finish=False)
    assert len(write(tmp_path / "rows.parquet", [PREDICTED | {"path": "d.png"}])) == 3
    assert len(known(tmp_path / "rows.parquet")) == 4


def test_a_kill_after_the_merge_doubles_no_row(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    write(tmp_path / "rows.parquet", [PREDICTED], finish=False)
    rest = tmp_path / "rows.parquet.part.jsonl"
    rows = rest.read_bytes()
    write(tmp_path / "rows.parquet", [])
    rest.write_bytes(rows)
    write(tmp_path / "rows.parquet", [])
    assert len(known(tmp_path / "rows.parquet")) == 1


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"moleflow\[parquet\]"):
        open_output(tmp_path / "rows.parquet")


@pytest.mark.parametrize("name", TEXT)
def test_a_cut_last_row_is_removed_wherever_it_was_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    start = whole.rindex(b"c.png") - (10 if name.endswith("jsonl") else 0)
    for end in {start + 1, start + 5, (start + len(whole)) // 2, len(whole) - 1}:
        path.write_bytes(whole[:end])
        assert len(write(path, ROWS[2:])) == 2
        assert path.read_bytes() == whole


def test_a_cut_header_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    write(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", TEXT)
def test_a_damaged_row_in_the_middle_is_an_error_and_nothing_is_changed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path)
    damaged = path.read_bytes().replace(b"a.png", b"a\n.png", 1)
    path.write_bytes(damaged)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        known(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.jsonl", b"my notes"),
        ("notes.jsonl", b'{"path": "' + b"x" * 2**21),
        ("notes.csv", b"a,b\n1,2\n"),
        ("notes.csv", b"a,b"),
        ("notes.parquet", b"PAR1 no"),
    ],
)
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="choose another name"):
        known(path)
    assert path.read_bytes() == content


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    output: Output = open_output(tmp_path / "rows.csv")
    with pytest.raises(ConfigurationError, match="in use"):
        open_output(tmp_path / "rows.csv")
    output.close()
    open_output(tmp_path / "rows.csv").close()
