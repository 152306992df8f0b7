"""The command line on a tiny checkpoint, in real processes: predict, inspect, serve, and common errors."""

import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from forked import Finished, Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint, write_product

from moleflow.model.store.checkpoint import Checkpoint
from moleflow.service.settings import Settings
from moleflow.training.config import PRESETS

PRODUCTS = ("bolt", "nut", "gear")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "factory.safetensors").path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """One image of each product, 80 × 60 pixels."""
    paths = []
    for kind, name in enumerate(PRODUCTS):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(product_image(kind, 50)).resize((80, 60)).save(paths[-1])
    return paths


def run(processes: Processes, *arguments: object) -> Finished:
    return processes.run(moleflow_code(*arguments))


def test_predict_names_product_and_verdict_of_each_image(
    processes: Processes, checkpoint: Path, images: list[Path]
) -> None:
    done = run(processes, "predict", checkpoint, *images, "--plugin", PLUGIN)
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, path, product in zip(lines, images, PRODUCTS, strict=True):
        assert line.startswith(f"{path}: ")
        assert re.search(rf"(good|DEFECT) +{product} +score -?\d", line)


def test_predict_json_has_the_fields_of_the_api(processes: Processes, checkpoint: Path, images: list[Path]) -> None:
    done = run(processes, "predict", checkpoint, *images, "--json", "--map", "npy", "--plugin", PLUGIN)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["task"]["name"] for answer in answers] == list(PRODUCTS)
    assert set(answers[0]) == {
        "path",
        "id",
        "verdict",
        "task",
        "routing",
        "score",
        "p_value",
        "threshold",
        "false_alarm_rate",
        "is_anomalous",
        "pixel_threshold",
        "regions",
        "anomaly_map",
        "inspected",
        "warnings",
        "image",
        "checkpoint",
        "timing_ms",
    }
    assert answers[0]["image"] == {"width": 80, "height": 60}
    assert answers[0]["anomaly_map"]["shape"] == [60, 80]


def test_predict_warns_about_an_image_that_does_not_match_its_product(
    processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(product_image(0, 50).mean(2).astype(np.uint16) * 257).save(path)
    done = run(processes, "predict", checkpoint, path, "--task", "bolt", "--plugin", PLUGIN)
    assert done.status == 0
    assert done.stderr.startswith(f"warning: {path}: the image has 16-bit values, but 'bolt' has no white level")


@pytest.mark.parametrize("command", ["predict", "train", "evaluate"])
def test_one_setting_limits_the_images_of_every_command(
    processes: Processes, checkpoint: Path, images: list[Path], tmp_path: Path, command: str
) -> None:
    product = tmp_path / "data" / "bolt"
    for part in ("train/good", "test/good"):
        (product / part).mkdir(parents=True)
        for number in range(6):
            (product / part / f"{number}.png").write_bytes(images[0].read_bytes())
    arguments = {
        "predict": ["predict", checkpoint, images[0], "--plugin", PLUGIN],
        "train": ["train", product.parent, "--checkpoint", tmp_path / "new.safetensors", "--preset", "small"],
        "evaluate": ["evaluate", checkpoint, product.parent, "--plugin", PLUGIN],
    }[command]
    done = run(processes, *arguments, "--max-pixels", "4799")
    assert done.status == 1
    assert "80 × 60 = 4,800 pixels; at most 4,799 are accepted" in done.stderr
    assert "--max-pixels or MOLEFLOW_MAX_PIXELS" in done.stderr


def test_predict_reports_an_unknown_product_and_writes_no_overlay(
    processes: Processes, checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(foreign)
    arguments = ("predict", checkpoint, foreign, images[0], "--plugin", PLUGIN)
    done = run(processes, *arguments, "--save-overlay", tmp_path / "out")
    assert done.status == 0, done.stderr
    assert re.search(r"foreign.png: UNKNOWN +no learned product; nearest (bolt|nut|gear)", done.stdout)
    assert "no overlay for foreign" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bolt_overlay.png"]
    assert "UNKNOWN" not in run(processes, *arguments, "--unknown-limit", 0).stdout
    assert "UNKNOWN" not in run(processes, *arguments, "--task", "nut").stdout


def test_predict_accepts_another_false_alarm_rate(processes: Processes, checkpoint: Path, images: list[Path]) -> None:
    def answer(*options: object) -> dict:
        return json.loads(
            run(processes, "predict", checkpoint, images[0], "--json", "--plugin", PLUGIN, *options).stdout
        )

    usual, lax = answer(), answer("--false-alarm-rate", 0.3)
    assert (usual["false_alarm_rate"], lax["false_alarm_rate"]) == (0.01, 0.3)
    assert lax["threshold"] < usual["threshold"]
    assert lax["score"] == usual["score"]


def test_predict_accepts_a_named_product(processes: Processes, checkpoint: Path, images: list[Path]) -> None:
    done = run(processes, "predict", checkpoint, images[0], "--task", "gear", "--json", "--plugin", PLUGIN)
    answer = json.loads(done.stdout)
    assert answer["task"]["name"] == "gear"
    assert answer["routing"]["forced"] is True


def test_predict_saves_overlays_at_the_size_of_the_image(
    processes: Processes, checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    done = run(processes, "predict", checkpoint, *images, "--save-overlay", tmp_path / "out", "--plugin", PLUGIN)
    assert done.status == 0, done.stderr
    for product in PRODUCTS:
        with Image.open(tmp_path / "out" / f"{product}_overlay.png") as overlay:
            assert (overlay.format, overlay.size) == ("PNG", (80, 60))


def test_images_of_the_same_name_get_separate_overlays(
    processes: Processes, checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    same = []
    for folder, source in zip("ab", images, strict=False):
        same.append(tmp_path / folder / "000.png")
        same[-1].parent.mkdir()
        same[-1].write_bytes(source.read_bytes())
    out = tmp_path / "out"
    done = run(processes, "predict", checkpoint, *same, "--save-overlay", out, "--plugin", PLUGIN)
    assert done.status == 0, done.stderr
    assert len(list(out.iterdir())) == 2


def test_an_unreadable_image_is_reported_and_does_not_stop_the_others(
    processes: Processes, checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    arguments = (images[0], broken, tmp_path / "missing.png", images[2])
    done = run(processes, "predict", checkpoint, *arguments, "--plugin", PLUGIN)
    assert done.status == 1
    assert len(done.stdout.splitlines()) == 2
    assert "broken.png" in done.stderr
    assert "missing.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_lists_products_and_checks_digests(processes: Processes, checkpoint: Path) -> None:
    done = run(processes, "inspect", checkpoint, "--verify")
    assert done.status == 0, done.stderr
    counted = Checkpoint.open(checkpoint).header.tasks[0].parameters
    sizes = ("frozen, 0.00 M parameters", f"{counted / 1e6:.2f} M")
    for text in (*PRODUCTS, "tiny_backbone", "all tensors verified", "2 MoLE + 2 DIA blocks, rank 2", *sizes):
        assert text in re.sub(r"\s+", " ", done.stdout)


def test_inspect_json_is_the_header(processes: Processes, checkpoint: Path) -> None:
    header = json.loads(run(processes, "inspect", checkpoint, "--json").stdout)
    assert [task["name"] for task in header["tasks"]] == list(PRODUCTS)
    assert header["preprocessing"]["image_size"] == 32


def test_inspect_verify_finds_a_changed_tensor(processes: Processes, checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(checkpoint.read_bytes())
    data[-10] ^= 1
    damaged.write_bytes(data)
    done = run(processes, "inspect", damaged, "--verify")
    assert done.status == 1
    assert "differs from what was written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("inspect", "missing.safetensors"), "moleflow train"),
        (("predict", "missing.safetensors", "x.png"), "moleflow train"),
        (("serve", "missing.safetensors", "--port", "0"), "moleflow train"),
        (("serve",), "MOLEFLOW_CHECKPOINT"),
        (("serve", "x", "--port", "70000"), "port"),
        (("serve", "x", "--false-alarm-rate", "2"), "MOLEFLOW_FALSE_ALARM_RATE"),
        (("inspect", PLUGIN), "safetensors"),
        (("evaluate", "missing.safetensors", "data"), "moleflow train"),
        (("summarise", "missing.json", "missing.json"), "moleflow evaluate --json"),
        (("summarise", PLUGIN, PLUGIN), "moleflow evaluate --json"),
    ],
)
def test_an_error_is_one_line_with_advice(processes: Processes, arguments: tuple[object, ...], hint: str) -> None:
    done = run(processes, *arguments)
    assert done.status == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert hint in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["", "train", "evaluate", "summarise", "ablate", "predict", "inspect", "serve", "demo"]
)
def test_every_command_has_help(processes: Processes, command: str) -> None:
    done = run(processes, *([command] if command else []), "--help")
    assert done.status == 0
    assert "Usage:" in done.stdout


def test_every_setting_of_the_service_is_an_option_of_serve_with_its_default(processes: Processes) -> None:
    shown = " ".join(run(processes, "serve", "--help").stdout.replace("│", " ").split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown or name == "checkpoint"
        assert str(field.description).split()[-1] in shown
    assert "(default: 8000)" in shown
    assert "(default: 32.0MiB)" in shown


def test_serve_responds_until_it_is_stopped(
    processes: Processes, checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    seen = tmp_path / "url"
    # Only the process knows the chosen port, which it prints.
    before = f"""
import builtins
plain = builtins.print
def tell(*words, **options):
    plain(*words, **options)
    if "Serving" in str(words[0]):
        open({str(seen)!r} + ".new", "w").write(str(words[0]).split()[-1])
        import os; os.rename({str(seen)!r} + ".new", {str(seen)!r})
builtins.print = tell
"""
    code = moleflow_code("serve", checkpoint, "--port", 0, "--plugin", PLUGIN, before=before)
    server = processes.start(code)
    try:
        server.wait_for(seen.exists)
        assert server.running(), server.finish().stderr
        url = seen.read_text()
        with urllib.request.urlopen(f"{url}/tasks") as answer:
            assert [task["name"] for task in json.load(answer)["tasks"]] == list(PRODUCTS)
        request = urllib.request.Request(
            f"{url}/predict",
            data=images[1].read_bytes(),
            headers={"Content-Type": "image/png", "Accept": "application/x-npy"},
        )
        with urllib.request.urlopen(request) as answer:
            (tmp_path / "map.npy").write_bytes(answer.read())
        assert np.load(tmp_path / "map.npy").shape == (60, 80)
    finally:
        server.kill(15)
    assert server.finish().status in (0, -15)


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_the_help_names_every_preset(processes: Processes, command: str) -> None:
    shown = " ".join(run(processes, command, "--help").stdout.split())
    assert not [name for name in PRESETS if name not in shown]


def test_checkpoints_are_merged(processes: Processes, tmp_path: Path) -> None:
    one, other = (tiny_checkpoint(tmp_path / name, ("bolt", "nut", "gear")).path for name in ("one", "other"))
    both = tmp_path / "both"
    for path, gone in ((one, "nut"), (other, "gear")):
        assert run(processes, "remove", path, gone).status == 0
    done = run(processes, "merge", one, other, "-o", both)
    assert (done.status, done.stderr) == (0, "")
    assert "has 3 products; 1 in several files are kept once" in done.stdout
    assert run(processes, "rename", other, "nut", "gear").status == 0
    refused = run(processes, "merge", one, other, "-o", tmp_path / "none")
    assert refused.status == 1
    assert "'gear' of other differs" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "one", "other"]


def test_products_are_hidden_renamed_and_removed(processes: Processes, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors", PRODUCTS).path
    refused = run(processes, "remove", path, "bolt")
    assert refused.status == 1
    assert "moleflow remove --hide" in refused.stderr
    for arguments, left in (
        (("remove", path, "bolt", "--hide"), "nut, gear"),
        (("rename", path, "gear", "cog"), "nut, cog"),
        (("unhide", path, "bolt"), "bolt, nut, cog"),
        (("remove", path, "nut"), "bolt, cog"),
    ):
        done = run(processes, *arguments)
        assert done.status == 0, done.stderr
        assert done.stdout.endswith(f"now has {left}\n")


def test_recalibration_says_what_it_changes(processes: Processes, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors", PRODUCTS).path
    write_product(tmp_path / "data", "nut", 1, count=4)
    done = run(processes, "recalibrate", path, tmp_path / "data", "--plugin", PLUGIN, "--device", "cpu")
    assert done.status == 0, done.stderr
    assert re.search(
        r"^nut: 4 of 4 good images are new; threshold \S+ -> \S+; alarms among the good images \d -> \d$",
        done.stdout.splitlines()[-1],
    )
