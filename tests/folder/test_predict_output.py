"""`moleflow predict --output` in real processes."""

import csv
import functools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from forked import Finished, Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint

from moleflow.commands.predict_rows import FailOn, RowOptions, exit_status
from moleflow.folder.run import Request, Tally, predict_into
from moleflow.image_files import find_images
from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError
from moleflow.model.images.decode import SUFFIXES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("folder") / "factory.safetensors").path


def put(path: Path, kind: int = 0, seed: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(product_image(kind, seed)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images and a file that is none, below one folder."""
    for number in range(10):
        put(tmp_path / "images" / f"line{number // 5}" / f"{number}.png", number % 3)
    (tmp_path / "images" / "line1" / "bad.png").write_bytes(b"no image")
    return tmp_path / "images"


def predict(processes: Processes, checkpoint: Path, *arguments: object, before: str = "") -> Finished:
    return processes.run(moleflow_code("predict", checkpoint, *arguments, "--plugin", PLUGIN, before=before))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("timing_ms", "file", "error")}


def test_rows_are_the_answers_of_json_in_order_and_bad_files_have_one(
    processes: Processes, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    done = predict(processes, checkpoint, folder, "--output", out, "--save-overlay", tmp_path / "overlays")
    assert (done.status, done.stdout) == (1, "")
    printed = predict(processes, checkpoint, folder, "--json").stdout.splitlines()
    found = rows(out)
    assert [without_times(each) for each in found if each["error"] is None] == [
        without_times(json.loads(line)) for line in printed
    ]
    (bad,) = [each for each in found if each["error"] is not None]
    assert bad["path"] == str(folder / "line1" / "bad.png")
    assert bad["error"]["type"] == "urn:moleflow:problem:unsupported-image"
    assert "is not a PNG" in bad["error"]["detail"]
    assert len(list((tmp_path / "overlays").rglob("*.png"))) == 10
    assert done.stderr.startswith("11 images in ") and "1 with an error" in done.stderr


def test_a_killed_run_continues_with_the_images_that_have_no_row(
    processes: Processes, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    before = """
import moleflow.folder.output as module
plain, count = module.RowFile.append, []
def append(self, rows):
    plain(self, rows)
    count.append(1)
    if len(count) == 6:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
module.RowFile.append = append
"""
    assert predict(processes, checkpoint, folder, "--output", out, before=before).status == -signal.SIGKILL
    out.write_bytes(out.read_bytes()[:-20])
    put(folder / "line0" / "0.png", 1)  # changed
    done = predict(processes, checkpoint, folder, "--output", out, "--fail-on", "never")
    assert done.status == 0
    assert "7 images in" in done.stderr and "4 had a row already" in done.stderr and "It was cut" in done.stderr
    with out.open() as file:
        names = [Path(row["path"]).name for row in csv.DictReader(file)]
    assert names == [*(f"{number}.png" for number in (0, 1, 2, 3, 4, 0)), "5.png", *names[7:]]
    assert sorted(names[6:]) == ["5.png", "6.png", "7.png", "8.png", "9.png", "bad.png"]


def test_rows_with_other_options_are_not_mixed(checkpoint: Path, tmp_path: Path) -> None:
    detector = Detector.load(checkpoint, device="cpu", plugin=str(PLUGIN))
    image, out = put(tmp_path / "0.png"), tmp_path / "rows.csv"

    def run(detector: Detector, task: str | None) -> Tally:
        find = functools.partial(find_images, [image], SUFFIXES)
        return predict_into(detector, Request(find, out, task, None, None, False))

    assert run(detector, None).errors == 0
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match="another --task"):
        run(detector, "nut")
    detector.false_alarm_rate = 0.1
    with pytest.raises(ConfigurationError, match="another false-alarm rate"):
        run(detector, None)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("fail_on", "errors", "verdicts", "status"),
    [
        ("never", 1, {"anomalous"}, 0),
        ("error", 0, {"anomalous", "unknown_product"}, 0),
        ("error", 1, {"good"}, 1),
        ("anomaly", 0, {"good", "unknown_product"}, 0),
        ("anomaly", 0, {"good", "anomalous"}, 2),
        ("anomaly", 1, {"anomalous"}, 1),
        ("unknown", 0, {"unknown_product"}, 2),
        ("unknown", 0, {"good"}, 0),
    ],
)
def test_the_exit_status_says_what_was_asked_for(fail_on: FailOn, errors: int, verdicts: set[str], status: int) -> None:
    assert exit_status(fail_on, errors, verdicts) == status


def test_printed_verdicts_set_the_exit_status_too(processes: Processes, checkpoint: Path, tmp_path: Path) -> None:
    image = put(tmp_path / "0.png")
    assert predict(processes, checkpoint, image, "--false-alarm-rate", 0.99, "--fail-on", "anomaly").status == 2


def test_a_watched_folder_is_followed_until_interrupted(processes: Processes, checkpoint: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "rows.jsonl", tmp_path / "images"
    images.mkdir()
    arguments = ("--output", out, "--watch", "--plugin", PLUGIN)
    before = "import moleflow.folder.run as module; module.WATCH_SECONDS = 0.05"
    process = processes.start(moleflow_code("predict", checkpoint, images, *arguments, before=before))
    for number in range(2):
        put(images / f"{number}.png", number)
        process.wait_for(lambda number=number: out.exists() and out.read_bytes().count(b"\n") > number)  # type: ignore[misc]
    process.kill(signal.SIGINT)
    done = process.finish()
    assert done.status == 0, done.stderr
    assert [Path(each["path"]).name for each in rows(out)] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("rows", "json", "hint"),
    [
        (RowOptions(None, True, None, None), False, "--watch needs --output"),
        (RowOptions(None, False, "http://localhost", None), False, "--webhook needs --output"),
        (RowOptions(None, False, None, "mqtt://localhost/rows"), False, "--mqtt needs --output"),
        (RowOptions(Path("rows.parquet"), True, None, None), False, "which Parquet cannot"),
        (RowOptions(Path("rows.csv"), False, None, None), True, "give one"),
        (RowOptions(Path("rows.txt"), False, None, None), False, "should end in one of"),
    ],
)
def test_options_that_do_not_go_together_are_named(rows: RowOptions, json: bool, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        rows.check(json)


def test_they_are_refused_before_the_model_is_loaded(processes: Processes, tmp_path: Path) -> None:
    done = predict(processes, tmp_path / "missing.safetensors", tmp_path, "--watch")
    assert done.status == 1
    assert done.stderr.startswith("error: --watch needs --output")
