"""The load benchmark measures a real service, and its gates say what they should."""

import json
import shutil
from pathlib import Path

import pytest
from forked import Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint

from benchmarks.__main__ import main
from benchmarks.shared.errors import BenchmarkError
from benchmarks.speed import service_load
from benchmarks.speed.service_memory import flatness
from benchmarks.speed.wrk import REPLACEMENT, drive, find_wrk, parse


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for kind in range(3):
        Image.fromarray(product_image(kind, 0, 48)).save(folder / f"{kind}.png")
    return folder


def test_a_real_service_is_measured_beside_the_process(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without wrk even where it is installed, since its replacement must work on every machine.
    monkeypatch.setattr("shutil.which", lambda name: None)
    tiny_checkpoint(tmp_path / "tiny.safetensors")
    output = tmp_path / "load.json"
    status = service_load.main(
        [
            "--images",
            str(images),
            "--checkpoint",
            str(tmp_path / "tiny.safetensors"),
            "--plugin",
            str(PLUGIN),
            "--concurrency",
            "1",
            "--concurrency",
            "2",
            "--rounds",
            "1",
            "--seconds",
            "1",
            "--requests",
            "9",
            "--memory-seconds",
            "1",
            "--output",
            str(output),
        ]
    )
    result = json.loads(output.read_text())
    assert status == (0 if all(gate["passed"] for gate in result["gates"]) else 1)
    assert [row["concurrency"] for row in result["load"]] == [1, 2]
    assert [row["batch"] for row in result["load"]] == [1, 2]
    for row in result["load"]:
        assert row["ratio"] == pytest.approx(row["http_per_second"] / row["process_per_second"])
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
        assert all(0 < row["stages_ms"][name]["p50"] < latency["max"] for name in ("decode", "inference", "encode"))
    assert result["memory"]["requests"] >= 9
    assert result["memory"]["at_end"] > 2**20
    assert len(result["gates"]) == 4
    assert "| 2 |" in output.with_suffix(".md").read_text()
    assert result["generator"].startswith("plain_load.py")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_replacement_of_wrk_prints_what_wrk_prints(images: Path, tmp_path: Path, processes: Processes) -> None:
    tiny_checkpoint(tmp_path / "tiny.safetensors")
    options = ("--plugin", PLUGIN, "--port", 0, "--unknown-limit", 0)
    service = processes.start(moleflow_code("serve", tmp_path / "tiny.safetensors", *options))
    try:
        url, files = service.line(0).split()[-1], sorted(images.iterdir())
        loads = [drive(program, url, "/predict?map=none", files, 2, 1) for program in (find_wrk(), REPLACEMENT)]
    finally:
        service.kill()
    for load in loads:
        assert len(load) > 2
        inside = sum(load[name] for name in ("decode", "queue", "inference", "encode"))
        assert (inside > 0).all() and (inside < load["latency"]).all()
        assert set(load["status"]) == {200}
    one, other = (set(load["bytes"] // 100) for load in loads)
    assert one & other


def row(concurrency: int, ratio: float, queue: float) -> dict[str, object]:
    return {"concurrency": concurrency, "ratio": ratio, "stages_ms": {"queue": {"p95": queue}}}


def test_the_gates_are_the_ratio_the_queue_of_a_lone_client_and_the_memory() -> None:
    memory = {"requests": 10_000, "growth": 0.03}
    gates = service_load.judge([row(1, 0.9, 5.0), row(4, 0.89, 700.0)], memory)
    assert [gate.passed for gate in gates] == [True, False, True, False]
    assert [gate.passed for gate in service_load.judge([row(1, 1.2, 5.1)], None)] == [True, False]


def test_memory_is_compared_between_the_end_of_the_warm_up_and_the_end() -> None:
    counts = list(range(0, 1001, 10))
    warming = [100 + min(count, 200) for count in counts]
    assert flatness(counts, warming)["growth"] == 0
    leaking = [100 + count for count in counts]
    found = flatness(counts, leaking)
    assert (found["after_warm_up"], found["at_end"]) == (350, 1050)


def test_an_answer_that_is_no_success_ends_the_measurement() -> None:
    with pytest.raises(BenchmarkError, match="1 of 2 answers have another status than 200: 429"):
        parse("Running\n1000000 5 200 9 1 1 1 1\n2000000 5 429 9 nan nan nan nan\n")
    with pytest.raises(BenchmarkError, match="the load generator got no answer: unable to connect"):
        parse("unable to connect")


def test_the_rate_counts_from_the_first_answer_on() -> None:
    load = parse("".join(f"{2000000 + 500000 * i} 7 200 9 1 1 1 1\n" for i in range(5)))
    assert load.per_second() == pytest.approx(2)


def test_what_is_missing_is_named(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service_load", "--images", str(tmp_path)]) == 2
    assert "holds no images" in capsys.readouterr().err
    tiny_checkpoint(tmp_path / "tiny.safetensors")
    arguments = ["--images", str(images), "--checkpoint", str(tmp_path / "tiny.safetensors")]
    assert main(["service_load", *arguments, "--wrk", "no-such-program"]) == 2
    assert "apt install wrk" in capsys.readouterr().err
