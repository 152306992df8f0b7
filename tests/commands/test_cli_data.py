"""Warnings of `train` and `evaluate` about data, which `--strict` makes errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from forked import Finished, Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, tiny_checkpoint, write_product, write_tested_product

NETWORK = ("--preset", "small", "--backbone", "tiny_backbone", "--image-size", 32, "--epochs", 1, "--folds", 1)


def run(processes: Processes, *arguments: object) -> Finished:
    return processes.run(moleflow_code(*arguments, "--plugin", PLUGIN, "--device", "cpu", "--precision", "fp32"))


def errors(done: Finished) -> str:
    """The single line of an error."""
    assert done.status == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Bolt and nut with test images; one defective nut has no mask."""
    write_tested_product(tmp_path / "data", "bolt", 0)
    write_tested_product(tmp_path / "data", "nut", 1)
    (tmp_path / "data" / "nut" / "ground_truth" / "spot" / "201_mask.png").unlink()
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors").path


def test_evaluate_writes_warnings_into_results_and_report(
    processes: Processes, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    done = run(processes, "evaluate", checkpoint, data, "--json", tmp_path / "a.json", "--report", tmp_path / "a.html")
    assert done.status == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "nut: defective images without a mask: 1, such as nut/test/spot/201.png." in warning
    (kept,) = json.loads((tmp_path / "a.json").read_text())["warnings"]
    assert (kept["product"], kept["count"], kept["example"]) == ("nut", 1, "nut/test/spot/201.png")
    assert warning.removeprefix("warning: ") in (tmp_path / "a.html").read_text()


def test_evaluate_treats_warnings_as_errors_if_strict(
    processes: Processes, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    done = run(processes, "evaluate", checkpoint, data, "--strict", "--json", tmp_path / "a.json")
    assert "nut: defective images without a mask: 1" in errors(done)
    assert not (tmp_path / "a.json").exists()
    assert run(processes, "evaluate", checkpoint, data, "--strict", "--task", "bolt").status == 0


def test_evaluate_names_all_unusable_files_before_measuring(
    processes: Processes, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    broken = ["bolt/test/good/100.png", "nut/test/spot/202.png", "nut/ground_truth/spot/200_mask.png"]
    for name in broken:
        (data / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    error = errors(run(processes, "evaluate", checkpoint, data))
    assert "3 of 19 test images and masks cannot be used" in error
    assert all(name in error for name in broken)


def test_evaluate_keeps_results_when_a_later_product_fails(
    processes: Processes, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    lost = data / "nut" / "test" / "good" / "103.png"
    # An image that disappears after the check, as on a network drive.
    before = f"""
from pathlib import Path
import moleflow.training.evaluation.evaluate
plain = moleflow.training.evaluation.evaluate.measure
def measure(name, *rest, **options):
    Path({str(lost)!r}).unlink(missing_ok=True)
    return plain(name, *rest, **options)
moleflow.training.evaluation.evaluate.measure = measure
"""
    arguments = ("evaluate", checkpoint, data, "--plugin", PLUGIN, "--json", tmp_path / "a.json", "--batch-size", 4)
    done = processes.run(moleflow_code(*arguments, before=before))
    assert "103.png cannot be read" in errors(done)
    assert "bolt" in done.stdout
    assert "ended early; not evaluated: nut" in done.stderr
    kept = json.loads((tmp_path / "a.json").read_text())
    assert ([each["category"] for each in kept["categories"]], kept["unmeasured"]) == (["bolt"], ["nut"])


def test_train_prints_warnings_and_treats_them_as_errors_if_strict(processes: Processes, tmp_path: Path) -> None:
    folder = write_product(tmp_path / "data", "bolt", 0, count=8)
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    (tmp_path / "data" / "Old" / "batch").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data" / "Old" / "batch" / "a.png")
    path = tmp_path / "factory.safetensors"
    arguments = ("train", tmp_path / "data", "--checkpoint", path, *NETWORK)
    assert "folders with images that are not products: 1, such as Old" in errors(run(processes, *arguments, "--strict"))
    error = errors(run(processes, *arguments, "--task", "bolt", "--strict"))
    assert "bolt: training images that are duplicates: 1, such as bolt/copy.png" in error
    assert not path.exists()
    done = run(processes, *arguments)
    assert done.status == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("warning: ")]) == 2


def test_a_preset_other_than_that_of_the_checkpoint_is_rejected(
    processes: Processes, checkpoint: Path, data: Path
) -> None:
    before = checkpoint.read_bytes()
    done = run(processes, "train", data, "--task", "nut", "--checkpoint", checkpoint, "--preset", "main")
    assert "--preset main differs from small, the preset of" in errors(done)
    assert checkpoint.read_bytes() == before
