"""The stages of ``python -m benchmarks gpu``, and the folder that is carried to its machine."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.gpu import ablations, pack
from benchmarks.gpu.context import Context, NotMeasuredError, OutOfTimeError
from benchmarks.gpu.correctness import outcomes
from benchmarks.gpu.learning import Watch
from benchmarks.gpu.models import chosen_preset
from benchmarks.gpu.records import FAILED, MEASURED, NOT_MEASURED, STOPPED, Records
from benchmarks.gpu.report import MOST_LINES, summary
from benchmarks.gpu.run import command, parse
from benchmarks.gpu.stages import STAGES, Stage, run_stages
from moleflow.training.ablation.studies import STUDIES
from moleflow.training.config import PRESETS

WRITES = "import json; json.dump({{'state': '{}', 'reason': '', 'seconds': 1, 'result': {{}}}}, open({!r}, 'w'))"

ONE, OTHER = Stage("machine", 1), Stage("speed", 1)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(records: Records, commands: dict[str, str], *stages: Stage, **options: object) -> list[str]:
    """Run stages whose processes are lines of Python; returns those that were begun."""
    begun: list[str] = []

    def words(stage: Stage, _end: float) -> list[str]:
        begun.append(stage.name)
        return python(commands[stage.name])

    given: dict = {"deadline": time.time() + 60, "temporary": records.folder.parent / "temporary"} | options
    run_stages(stages, records, words, **given)
    return begun


def writing(records: Records, stage: Stage, state: str = MEASURED) -> str:
    return WRITES.format(state, str(records.file(stage.name)))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "output")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    options = ["--output", str(tmp_path / "output"), "--work", str(tmp_path / "work"), "--reduced"]
    return Context("speed", parse(options))


def test_a_crashing_stage_leaves_its_traceback_and_the_others_go_on(records: Records) -> None:
    commands = {"machine": "raise ValueError('the device is broken')", "speed": writing(records, OTHER)}
    assert run(records, commands, ONE, OTHER) == ["machine", "speed"]
    found = records.read()
    assert (found["machine"]["state"], found["speed"]["state"]) == (FAILED, MEASURED)
    assert "the device is broken" in found["machine"]["reason"]
    assert "Traceback" in (records.folder / "gpu.log").read_text()


def test_a_crashing_stage_keeps_what_it_had_measured(records: Records) -> None:
    code = "import json; json.dump({{'state': 'stopped', 'seconds': 1, 'result': {{'ms': 3}}}}, open({!r}, 'w')); 1/0"
    run(records, {"machine": code.format(str(records.file("machine")))}, ONE)
    assert records.read()["machine"]["result"] == {"ms": 3}


def test_what_is_whole_is_kept_unless_it_is_to_be_fresh(records: Records) -> None:
    commands = {"machine": writing(records, ONE)}
    assert run(records, commands, ONE) == ["machine"]
    assert run(records, commands, ONE) == []
    assert run(records, commands, ONE, fresh=True) == ["machine"]


def test_a_stopped_stage_runs_again(records: Records) -> None:
    commands = {"machine": writing(records, ONE, STOPPED)}
    assert run(records, commands, ONE) == run(records, commands, ONE) == ["machine"]


def test_a_stage_whose_time_has_come_is_not_begun(records: Records) -> None:
    assert run(records, {}, ONE, deadline=time.time() - 1) == []
    assert records.read() == {}


def test_a_stage_that_does_not_end_is_killed(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.stages.GRACE_SECONDS", 0.2)
    run(records, {"machine": "import time; time.sleep(60)"}, Stage("machine", 0))
    assert records.read()["machine"]["reason"].startswith("killed")


def test_learning_without_data_is_not_measured(records: Records) -> None:
    assert run(records, {}, STAGES["training"], has_data=False) == []
    assert records.read()["training"]["state"] == NOT_MEASURED


def test_the_folder_holds_few_files_after_all_stages(records: Records) -> None:
    stages = list(STAGES.values())
    run(records, {each.name: f"print(1); {writing(records, each)}" for each in stages}, *stages)
    assert {path.name for path in records.folder.iterdir()} == {"gpu.json", "gpu.log"}
    assert set(records.read()) == set(STAGES)


def test_what_a_killed_command_left_is_kept(records: Records) -> None:
    records.write("speed", STOPPED, {"main": 1})
    records.log("speed").write_text("half a line")
    records.recover(STAGES)
    assert not records.file("speed").exists()
    assert Records(records.folder).read()["speed"]["result"] == {"main": 1}
    assert "half a line" in (records.folder / "gpu.log").read_text()


def test_a_stage_gets_the_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = "--output out --data d --products a b --backbone n --weights w --epochs 3 --wrk x/wrk --share 2/3"
    options = parse([*given.split(), "--fresh", "--reduced"])
    words = command(options, STAGES["speed"], 123.0)
    again = parse(words[words.index("gpu") + 1 :])
    assert (again.stage, again.deadline) == ("speed", 123.0)
    assert again.output == tmp_path / "out"
    for name in ("data", "products", "backbone", "weights", "epochs", "wrk", "share", "fresh", "reduced", "work"):
        assert getattr(again, name) == getattr(options, name), name


def failing() -> None:
    raise RuntimeError("out of memory")


def missing() -> None:
    raise NotMeasuredError("no CUDA device")


@pytest.mark.parametrize(
    ("call", "entry"),
    [(failing, {"error": "RuntimeError: out of memory"}), (missing, {"not_measured": "no CUDA device"})],
)
def test_a_figure_that_fails_leaves_the_others(context: Context, call: Callable[[], None], entry: dict) -> None:
    context.attempt(context.result, "one", call)
    context.attempt(context.result, "other", lambda: 5)
    assert context.result == {"one": entry, "other": 5}
    assert context.records.read()["speed"]["result"] == context.result  # written at once


def test_without_time_a_figure_is_not_begun_and_an_earlier_one_is_kept(context: Context) -> None:
    context.options.deadline = time.time() - 1
    context.result["old"] = 4
    for name in ("old", "new"):
        context.attempt(context.result, name, failing)
    assert context.result["old"] == 4
    assert context.result["new"] == {"not_measured": "no time was left"}
    assert context.stopped


def test_a_training_ends_after_an_epoch_when_its_time_is_up(context: Context, tmp_path: Path) -> None:
    watch = Watch(context, reserve=10).with_history(tmp_path / "history")
    context.options.deadline = time.time() + 60
    watch.record("epoch", name="bolt", epoch=1)
    context.options.deadline = time.time() + 9
    with pytest.raises(OutOfTimeError):
        watch.record("epoch", name="bolt", epoch=2)
    assert [each["epoch"] for each in watch.found("epoch", "bolt")] == [1, 2]
    assert len((tmp_path / "history").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["main", "fast"])
def test_a_reduced_preset_keeps_its_kind(context: Context, name: str) -> None:
    reduced = chosen_preset(context, name).model
    context.options.reduced = False
    whole = chosen_preset(context, name).model
    assert reduced.flow.adapter == whole.flow.adapter
    assert (reduced.scoring.memory is None) == (whole.scoring.memory is None)
    assert reduced.backbone.image_size < whole.backbone.image_size


def test_failing_and_skipped_tests_are_named(tmp_path: Path) -> None:
    cases = """<testcase classname="tests.cuda.test_a" name="holds" time="2"/>
    <testcase classname="tests.cuda.test_a" name="breaks"><failure message="assert 1 == 2">long</failure></testcase>
    <testcase classname="tests.cuda.test_b" name="waits"><skipped message="no GPU"/></testcase>"""
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    found = outcomes(tmp_path / "report.xml")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == {"test_a::breaks": "assert 1 == 2"}
    assert found["skips"] == {"test_b::waits": "no GPU"}
    assert next(iter(found["slowest"])) == "test_a::holds"


def test_the_summary_is_short_and_survives_stages_that_ended_in_the_middle() -> None:
    row = {"study": "core", "row": "r", "mean": dict.fromkeys(("image_auroc", "pixel_auroc", "pixel_ap", "routing"), 1)}
    record = {"state": MEASURED, "reason": "", "seconds": 1}
    stages = {name: record | {"result": {"main": {}}} for name in STAGES}
    batches = {str(number): {"one": {"ms": 2.0}, "mixed": {"ms": 3.0}} for number in range(100)}
    stages["speed"] = record | {"result": {"main": {"batches": batches}}}
    stages["ablations"] = record | {"result": {"rows": [row | {"train_seconds": 1}] * 90, "total": 90}}
    text = summary(stages)
    assert len(text.splitlines()) <= MOST_LINES
    assert "| main, 0 | 2.00 | 3.00 | 1.50 |" in text


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """Seven training images, and seven test images of a defect, each with a mask whose pixels tell its number."""
    for number in range(7):
        for part in (f"train/good/{number}.png", f"test/dent/{number}.png", f"ground_truth/dent/{number}_mask.png"):
            path = tmp_path / "data/bolt" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), number + 1, np.uint8)).save(path)
    return tmp_path / "data"


def test_the_pack_keeps_every_third_image_with_its_mask(product: Path, tmp_path: Path) -> None:
    assert pack.copy_product(product, "bolt", tmp_path / "pack", every=3) == 6
    names = {str(path.relative_to(tmp_path / "pack/bolt")) for path in (tmp_path / "pack").rglob("*.png")}
    assert names == {
        f"{folder}/{number}{end}.png"
        for folder, end in (("train/good", ""), ("test/dent", ""), ("ground_truth/dent", "_mask"))
        for number in (0, 3, 6)
    }
    for name in names:
        assert (tmp_path / "pack/bolt" / name).read_bytes() == (product / "bolt" / name).read_bytes()


def test_packed_weights_are_half_as_large_without_losing_small_variances(tmp_path: Path) -> None:
    weights = {"conv": torch.randn(32, 16, 3, 3), "variance": torch.full((32,), 1e-9), "count": torch.tensor(7)}
    save_file(weights, tmp_path / "whole.safetensors")
    pack.halve(tmp_path / "whole.safetensors", tmp_path / "half.safetensors")
    found = load_file(tmp_path / "half.safetensors")
    assert found["conv"].dtype == torch.float16
    torch.testing.assert_close(found["conv"].float(), weights["conv"], rtol=1e-3, atol=1e-6)
    assert torch.equal(found["variance"], weights["variance"])
    assert torch.equal(found["count"], weights["count"])


def test_a_pack_above_the_limit_fails_its_gate(product: Path, tmp_path: Path) -> None:
    save_file({"conv": torch.randn(200, 200)}, tmp_path / "w.safetensors")
    (tmp_path / "plugin.py").write_text("")
    words = ["--data", product, "--weights", tmp_path / "w.safetensors", "--stand-in", tmp_path / "plugin.py"]
    words += ["--products", "bolt/2", "--wrk", "no-such-program", "--output"]
    assert pack.main([*map(str, words), str(tmp_path / "small"), "--limit-mb", "1"]) == 0
    assert pack.main([*map(str, words), str(tmp_path / "large"), "--limit-mb", "0.05"]) == 1
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "README.txt",
        "data",
        "plugin.py",
        "weights.safetensors",
    }


def test_shares_hold_every_configuration_once(tmp_path: Path) -> None:
    preset = PRESETS["main"]
    rows = [row for study in STUDIES.values() for row in study.rows]
    shares = [ablations.share_rows(rows, preset, (part, 3)) for part in (1, 2, 3)]
    found = [row.resolve(preset).model_dump_json() for share in shares for row in share]
    assert sorted(found) == sorted({row.resolve(preset).model_dump_json() for row in rows})


@pytest.mark.parametrize("text", ["0/2", "3/2", "1"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SystemExit):
        parse(["--output", str(tmp_path), "--share", text])
