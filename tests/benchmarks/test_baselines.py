"""The comparison with the baselines: its workers, tables and rows, without the baselines themselves."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.baselines import accuracy, speed, speed_table
from benchmarks.baselines.protocol import SubjectError, Worker, WorkerError
from benchmarks.baselines.scorers import PADIM_RIDGE, Scored, fit_gaussians
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.rows import read_rows
from benchmarks.speed.bare_network import flow_products
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.merged import MergedExpert
from moleflow.training.data.datasets import read_image
from moleflow.training.fit.coreset import farthest_first

FAKE = """
import os, sys, time
from benchmarks.baselines.protocol import serve

class Sleeper:
    def __init__(self, ms):
        self.ms, self.facts = ms, {{"form": "PyTorch", "precision": "fp32", "pixels": 224}}
        print("chatter of a library")

    def call(self, batch):
        return lambda: time.sleep(self.ms * batch / 1000)

class Fragile(Sleeper):
    def call(self, batch):
        if batch > 1:
            raise ValueError("takes one image only")
        return super().call(batch)

def missing():
    raise ImportError("no such library")

def die():
    print("out of memory", file=sys.stderr, flush=True)
    os._exit(3)

builders = {{"slow": lambda: Sleeper(4), "fast": lambda: Sleeper(1), "fragile": lambda: Fragile(1),
            "missing": missing, "deadly": die}}
serve(builders, {{"torch": {torch!r}, "threads": int(os.environ["OMP_NUM_THREADS"])}})
"""


def fake_worker(folder: Path, torch_version: str = "2", threads: int = 1) -> Worker:
    script = folder / "worker.py"
    script.write_text(FAKE.format(torch=torch_version), encoding="utf-8")
    return Worker([sys.executable, script], speed.thread_variables(threads))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with fake_worker(tmp_path) as worker:
        yield worker


def test_a_worker_times_as_many_calls_as_it_is_asked_for(worker: Worker) -> None:
    assert worker.prepare("slow") == {"form": "PyTorch", "precision": "fp32", "pixels": 224}
    times = worker.time("slow", batch=2, calls=3)
    assert len(times) == 3
    assert min(times) >= 8  # it sleeps as long, so no machine can be faster


def test_a_worker_says_which_threads_and_subjects_it_has(tmp_path: Path) -> None:
    with fake_worker(tmp_path, threads=3) as worker:
        hello = worker.hello()
    assert hello["threads"] == 3
    assert "fast" in hello["subjects"]


def test_a_subject_that_cannot_be_built_leaves_its_worker_alive(worker: Worker) -> None:
    with pytest.raises(SubjectError, match="ImportError: no such library"):
        worker.prepare("missing")
    assert worker.time("fast", batch=1, calls=1)


def test_a_worker_that_dies_is_reported_with_its_last_words(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"'deadly'.*exit status 3; .*out of memory"):
        worker.prepare("deadly")


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="nowhere cannot be started"):
        Worker([tmp_path / "nowhere"], {})


def test_two_workers_take_turns_and_a_subject_that_fails_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with fake_worker(tmp_path) as own, fake_worker(tmp_path / "other") as other:
        speed.agree([own.hello(), other.hello()])
        sides = {"fast": own, "slow": other, "fragile": other, "missing": other}
        facts, missing = speed.prepare(sides, list(sides))
        assert set(facts) == {"fast", "slow", "fragile"}
        assert missing == {"missing": "ImportError: no such library"}
        times, failed = speed.measure(sides, list(facts), batches=[1, 2], rounds=3, calls=2)
    assert failed == {"fragile": "batch 2: ValueError: takes one image only"}
    assert {batch: sorted(found) for batch, found in times.items()} == {1: ["fast", "slow"], 2: ["fast", "slow"]}
    assert all(len(found) == 3 and min(found) >= 1 for found in times[2].values())  # an image, not a batch


def test_workers_of_two_pytorch_releases_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with fake_worker(tmp_path) as own, fake_worker(tmp_path / "other", "3") as other:
        hellos = [own.hello(), other.hello()]
    with pytest.raises(BenchmarkError, match="differ in torch \\(2 and 3\\)"):
        speed.agree(hellos)


def test_own_subjects_that_are_missing_end_the_measurement() -> None:
    with pytest.raises(BenchmarkError, match="products-bf16 \\(no such type\\)"):
        speed.need_own({"products-bf16": "no such type", "stfpm": "anything"})


def test_a_missing_interpreter_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = str(tmp_path / "python")
    assert main(["baseline_speed", "--baselines", python, "--own", python, "--output", "unused.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("baseline_speed: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--batch", "-1"], ["--threads", "many"]])
def test_options_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse(["--baselines", "p", "--output", "o.json", *wrong])


def result() -> dict[str, object]:
    """Two rounds; the machine was twice as slow in the second, for all alike."""
    own = {"moleflow": 10.0, "backbone": 4.0, "products": 4.0}
    times = {f"{part}-{p}": [ms, 2 * ms] for p in speed_table.PRECISIONS for part, ms in own.items()}
    facts: dict[str, dict[str, Any]]
    facts = {name: {"form": "PyTorch" if "moleflow" in name else "lower bound", "precision": "fp32"} for name in times}
    for name, ms in (("stfpm", 25.0), ("stfpm-openvino", 5.0)):
        times[name] = [ms, 2 * ms]
        form = "OpenVINO" if name.endswith("-openvino") else "PyTorch"
        facts[name] = {"form": form, "precision": "fp32", "pixels": 224}
    return {
        "machine": {"processor": "abacus", "load_before": 0.0, "load_after": 1.0},
        "date": "2026-01-01",
        "own": {"torch": "2", "threads": 1, "auto_precision": "bf16"},
        "baselines": {"anomalib": "2.7.0"},
        "environment": {"OMP_NUM_THREADS": "1"},
        "rounds": 2,
        "calls": 3,
        "facts": facts,
        "missing": {"padim": "too large"},
        "ms_per_image": {1: times},
    }


def test_ratios_are_taken_within_a_round_so_that_a_slow_round_does_not_matter() -> None:
    text = speed_table.markdown(result())
    assert "| bf16 | 12.0 (8.0–16.0) | 6.0 | 6.0 | 15.0 (10.0–20.0) | 1.25 (1.25–1.25) |" in text
    assert "| stfpm | PyTorch | fp32 | 224 | 37.5 (25.0–50.0) | 2.50 (2.50–2.50) | 2.50 (2.50–2.50) |" in text
    assert "| stfpm | OpenVINO | fp32 | 224 | 7.5 (5.0–10.0) | 0.50 (0.50–0.50) | 0.50 (0.50–0.50) |" in text
    assert text.index("OpenVINO |") < text.index("| stfpm | PyTorch")  # the fastest first
    assert "- padim: too large" in text
    assert "OMP_NUM_THREADS=1" in text


def test_the_lower_bound_multiplies_as_often_as_the_merged_flow() -> None:
    from tiny_model import tiny_config

    config = tiny_config()
    expert = MergedExpert(Base(config), Expert(config, first=True))
    tensors = [*expert.parameters(), *expert.buffers()]
    merged = sum(tensor.numel() for tensor in tensors if tensor.ndim == 2)
    assert sum(outputs * inputs for outputs, inputs in flow_products(config)) == merged


@pytest.mark.parametrize("pool", [1, 7, 200])
def test_the_coreset_is_that_of_the_plain_greedy_choice(pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.training.fit.coreset.SMALLEST_POOL", pool)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator)
    features[150:] = features[:50]  # rows that repeat
    chosen, distances = [3], torch.full((200,), torch.inf)
    for _ in range(59):
        distances = torch.minimum(distances, torch.linalg.norm(features - features[chosen[-1]], dim=1))
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    ours = farthest_first(features, 3, 60)
    # Of two equal rows either may be taken, so what is compared is the rows, not their numbers.
    assert torch.equal(features[ours], features[chosen])


class Brightness:
    """Scores an image by how bright it is beside the good ones; its map is the image's red."""

    fitted = 0

    def fit(self, good: Sequence[Path]) -> None:
        type(self).fitted += 1
        self.usual = median(float(read_image(path).mean()) for path in good)

    def score(self, paths: Sequence[Path]) -> Iterator[Scored]:
        for path in paths:
            image = read_image(path)
            yield float(image.mean()) - self.usual, image[..., 0].astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A product whose defective images are bright in the half that their masks mark."""
    root = tmp_path / "data"
    for folder, bright in (("train/good", 0), ("test/good", 0), ("test/bad", 200)):
        (root / "nut" / folder).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((16, 16, 3), 20 + number, np.uint8)
            pixels[:8] += np.uint8(bright)
            Image.fromarray(pixels).save(root / "nut" / folder / f"{number}.png")
    masks = root / "nut" / "ground_truth" / "bad"
    masks.mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[:8] = 255
    for number in range(3):
        Image.fromarray(mask).save(masks / f"{number}_mask.png")
    return root


@pytest.fixture
def options(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(accuracy, "METHODS", {"brightness": Brightness})
    monkeypatch.setattr("benchmarks.baselines.scorers.METHODS", {"brightness": lambda setting: Brightness()})
    monkeypatch.setattr(Brightness, "fitted", 0)
    return argparse.Namespace(
        data=data,
        category=["nut"],
        output=tmp_path / "rows.jsonl",
        method=None,
        backbone="any",
        layer=None,
        image_size=16,
        checkpoint=None,
        seed=0,
    )


def test_a_row_is_measured_once_and_found_again(options: argparse.Namespace) -> None:
    (row,) = accuracy.run(options)
    assert (row["good"], row["defective"], row["image_auroc"], row["pixel_ap"]) == (3, 3, 1, pytest.approx(1, abs=0.05))
    assert accuracy.run(options) == [row]
    assert Brightness.fitted == 1
    options.seed = 1  # another setting is another row
    accuracy.run(options)
    assert Brightness.fitted == 2


def test_a_row_that_a_kill_cut_off_is_measured_again(options: argparse.Namespace) -> None:
    (row,) = accuracy.run(options)
    text = options.output.read_text()
    options.output.write_text(text + text[:40])
    assert read_rows(options.output) == [row]
    assert options.output.read_text() == text
    assert json.loads(text)["method"] == "brightness"


def test_a_table_of_several_categories_ends_with_their_mean() -> None:
    names = dict.fromkeys(accuracy.FIGURES)
    rows = [
        {"method": "padim", "category": name} | names | {"image_auroc": share} for name, share in (("a", 1), ("b", 0.5))
    ]
    assert accuracy.table(rows).splitlines()[-1].startswith("| padim | mean | 75.0 | – |")


def test_a_category_without_test_images_is_refused(
    options: argparse.Namespace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(data / "only_good.png")
    arguments = [str(data.parent), "--category", "data", "--output", str(options.output)]
    assert main(["baseline_accuracy", *arguments]) == 2
    assert "data holds no test images" in capsys.readouterr().err


def test_an_unknown_category_is_refused_in_one_line(
    options: argparse.Namespace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["baseline_accuracy", str(data), "--category", "bolt", "--output", str(options.output)]) == 2
    assert capsys.readouterr().err.startswith("brightness on bolt …\nbaseline_accuracy: There is no folder")


def test_what_is_fitted_is_reported_and_the_table_printed(
    options: argparse.Namespace, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main([str(data), "--category", "nut", "--output", str(options.output)]) == 0
    assert "| brightness | nut | 100.0 | 100.0 |" in capsys.readouterr().out


def test_padim_has_mean_and_inverse_covariance_of_every_position() -> None:
    bank = torch.randn(20, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    means, inverses = fit_gaussians(bank)
    values = bank.double().numpy()
    for position in range(6):
        features = values[:, :, position // 3, position % 3]
        covariance = np.cov(features, rowvar=False) + PADIM_RIDGE * np.eye(4)
        np.testing.assert_allclose(means[:, position].numpy(), features.mean(0), atol=1e-6)
        np.testing.assert_allclose(inverses[position].double().numpy() @ covariance, np.eye(4), atol=1e-5)
