"""The steps of one request are timed on a real model, and ways of waiting are compared on real processes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_model import PLUGIN, product_image, tiny_checkpoint

from benchmarks.speed import request_time, threads
from moleflow.model.detector import Detector
from moleflow.model.features.backbone import import_plugin
from moleflow.model.runtime.threads import THREAD_POLICY


def encoded(pixels: np.ndarray, path: Path) -> bytes:
    from PIL import Image

    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def test_every_step_is_timed_and_the_table_names_each(tmp_path: Path) -> None:
    import_plugin(str(PLUGIN))
    detector = Detector(tiny_checkpoint(tmp_path / "tiny.safetensors"), unknown_limit=0)
    steps = request_time.time_steps(detector, encoded(product_image(0, 0, 48), tmp_path / "a.png"))
    assert set(steps) == set(request_time.STEPS) - {"queue", "http"}
    assert all(value > 0 for value in steps.values())
    rounds = {name: [4.0, 5.0, 7.0] for name in request_time.STEPS}
    table = request_time.markdown({"steps_ms": rounds | {"request": [40.0, 41.0, 43.0]}, "generator": "wrk"})
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:-2]] == [*request_time.STEPS, "sum"]
    assert "the client measured 41.0 (40.0–43.0) | 40.0 |" in table


def test_the_two_policies_differ_in_nothing_but_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        f"open({str(seen)!r}, 'a').write(json.dumps([sys.argv[1:], dict(os.environ)]) + '\\n')\n"
        "print('ready', flush=True)\n"
        "for number, _ in enumerate(sys.stdin): print(json.dumps([10 + number, 1]), flush=True)\n"
    )
    monkeypatch.setattr(threads, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = threads.measure(tmp_path / "some.safetensors", 1, rounds=3, calls=2)
    # Each round asks alone first and then beside the busy process: 10, 12, 14 and 11, 13, 15.
    assert found["default"]["image_alone_ms"] == found["passive"]["image_alone_ms"] == [10, 12, 14]
    assert found["default"]["image_busy_ms"] == [11, 13, 15]
    (one, default), (other, passive) = (json.loads(line) for line in seen.read_text().splitlines())
    assert one == other
    assert not set(THREAD_POLICY) & set(default)
    assert THREAD_POLICY.items() <= passive.items()
    differing = {name for name in default.keys() | passive.keys() if default.get(name) != passive.get(name)}
    assert differing == set(THREAD_POLICY)
    assert "| passive | 12 (10–14) | 13 (11–15) | 1.0 (1.0–1.0) |" in threads.markdown(
        {"processors": 2, "load_before": 0.1, "busy": 1, "policies": found}
    )
