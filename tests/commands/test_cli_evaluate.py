"""Evaluating a checkpoint on the command line, in real processes: tables, files, and errors before measuring."""

import json
from pathlib import Path

import pytest
from forked import Finished, Processes, moleflow_code
from tiny_model import PLUGIN, tiny_checkpoint, write_tested_product

PRODUCTS = ("bolt", "nut", "gear")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "factory.safetensors").path


def run(processes: Processes, *arguments: object) -> Finished:
    return processes.run(moleflow_code(*arguments))


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolt and nut with test images."""
    root = tmp_path_factory.mktemp("tested")
    write_tested_product(root, "bolt", 0)
    write_tested_product(root, "nut", 1)
    return root


def test_evaluate_prints_tables_and_writes_json_and_report(
    processes: Processes, checkpoint: Path, tested: Path, tmp_path: Path
) -> None:
    earlier = tiny_checkpoint(tmp_path / "earlier.safetensors", names=("bolt",)).path
    common = ("--plugin", PLUGIN, "--device", "cpu", "--precision", "fp32", "--batch-size", 4)
    done = run(processes, "evaluate", earlier, tested, *common, "--json", tmp_path / "earlier.json")
    assert done.status == 0, done.stderr
    done = run(
        processes,
        "evaluate",
        checkpoint,
        tested,
        *common,
        "--history",
        tmp_path / "earlier.json",
        "--json",
        tmp_path / "new" / "out.json",
        "--report",
        tmp_path / "out.html",
    )
    assert done.status == 0, done.stderr
    for text in ("bolt", "nut", "mean", "AUPRO", "backward transfer (BWT)"):
        assert text in done.stdout
    found = json.loads((tmp_path / "new" / "out.json").read_text())
    assert [each["category"] for each in found["categories"]] == ["bolt", "nut"]
    assert found["continual"]["states"] == [["bolt"], list(PRODUCTS)]
    assert found["continual"]["named"]["image_auroc"]["forgetting"] == 0
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    assert "not in" in done.stderr
    done = run(processes, "summarise", tmp_path / "earlier.json", tmp_path / "new" / "out.json")
    assert done.status == 1
    assert "were not measured alike" in done.stderr


def test_evaluate_accepts_an_earlier_checkpoint_as_history(
    processes: Processes, checkpoint: Path, tested: Path, tmp_path: Path
) -> None:
    earlier = tiny_checkpoint(tmp_path / "earlier.safetensors", names=("bolt", "nut")).path
    arguments = (tested, "--task", "nut", "--plugin", PLUGIN, "--history", earlier, "--json", tmp_path / "out.json")
    done = run(processes, "evaluate", checkpoint, *arguments)
    assert done.status == 0, done.stderr
    after = json.loads((tmp_path / "out.json").read_text())["continual"]["named"]["image_ap"]["after"]
    assert after[0] == after[1]
    assert len(after) == 2


def test_summarise_prints_mean_and_deviation_and_writes_json(
    processes: Processes, checkpoint: Path, tested: Path, tmp_path: Path
) -> None:
    done = run(processes, "evaluate", checkpoint, tested, "--plugin", PLUGIN, "--json", tmp_path / "0.json")
    assert done.status == 0, done.stderr
    other = json.loads((tmp_path / "0.json").read_text()) | {"digest": "another"}
    (tmp_path / "1.json").write_text(json.dumps(other))
    done = run(processes, "summarise", tmp_path / "0.json", tmp_path / "1.json", "--json", tmp_path / "out.json")
    assert done.status == 0, done.stderr
    assert "± 0.00" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["mean"]["name"] == "mean"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--task", "screw"), "learned: bolt, nut, gear"),
        (("--task", "gear"), "for product 'gear'"),
        (("--json", "/dev/null/out.json"), "cannot be written"),
        (("--history", "missing.json"), "missing.json"),
    ],
)
def test_evaluate_reports_errors_before_measuring(
    processes: Processes, checkpoint: Path, tested: Path, options: tuple[str, ...], hint: str
) -> None:
    done = run(processes, "evaluate", checkpoint, tested, "--plugin", PLUGIN, *options)
    assert done.status == 1
    assert hint in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
