"""The page colours a map as the service's overlays do."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dummy import calibration
from running import Running

from moleflow.model.verdict import heatmap
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.heatmap import ColourScale, colour_table
from moleflow.model.verdict.results import Candidate, Prediction
from moleflow.service.api.pages import PAGE

NODE = shutil.which("node")
SIDE = 64

SCRIPT = """
import { readFileSync } from "node:fs";
import { readMap, scaleOf } from "./heatmap.js";
const cases = JSON.parse(readFileSync(0, "utf-8"));
console.log(JSON.stringify(cases.map(({ answer, encoded }) => {
  const map = readMap(encoded);
  const scale = scaleOf(answer, map);
  return { low: scale.low, top: scale.top, positions: Array.from(map.values, scale.ofMap) };
})));
"""


def prediction(grid: np.ndarray, threshold: float) -> Prediction:
    task, scores = Candidate("red", 0, 1.0, 0.5, 0.1), calibration(threshold)
    calibrated = TaskCalibration(scores=scores, peaks=scores, grounds=scores, distances=scores)
    score = float(np.sort(grid.ravel())[-3:].mean())
    return Prediction((task,), task, score, grid.astype(np.float32), SIDE, calibrated)


def predictions() -> list[Prediction]:
    """Good, defective in one spot, defective all over, and the same everywhere."""
    ordinary = np.random.default_rng(0).normal(-100, 5, (8, 8))
    spot = ordinary.copy()
    spot[2:4, 2:4] = 500
    return [
        prediction(ordinary, 50),
        prediction(spot, 50),
        prediction(ordinary + 1000, 50),
        prediction(np.full((8, 8), 900.0), 50),
        prediction(np.full((8, 8), 20.0), 50),
    ]


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_the_page_places_every_value_where_the_overlay_does(tmp_path: Path, service: Running) -> None:
    shutil.copy(PAGE / "heatmap.js", tmp_path)
    (tmp_path / "colours.js").write_text(service.client.get("/page/colours.js").text)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(SCRIPT)
    cases, expected = [], []
    for found in predictions():
        pixels = found.pixel_map()
        peak = float(pixels.max())
        data = base64.b64encode(pixels.astype("<f4").tobytes()).decode()
        encoded = {"shape": [SIDE, SIDE], "data": data, "maximum": peak}
        cases.append({"answer": {"score": found.score, "threshold": found.threshold}, "encoded": encoded})
        expected.append((ColourScale.of(found, peak), pixels))
    done = subprocess.run(
        [str(NODE), "run.js"], cwd=tmp_path, input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    for page, (scale, pixels) in zip(json.loads(done.stdout), expected, strict=True):
        assert (page["low"], page["top"]) == pytest.approx((scale.low, scale.top))
        levels = np.ceil(np.array(page["positions"]) * (len(colour_table()) - 1))
        assert np.abs(levels - scale.levels(pixels).ravel()).max() <= 1  # double against single precision


def test_the_page_gets_the_overlays_colours_and_its_opacity(service: Running) -> None:
    answer = service.client.get("/page/colours.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    prefix, _, table = answer.text.strip().rstrip(";").partition(" = ")
    assert prefix == "export const COLOURS"
    assert np.abs(np.array(json.loads(table)) - colour_table()).max() <= 0.5
    slider = f'id="opacity" min="0" max="100" step="5" value="{round(100 * heatmap._MAX_OPACITY)}"'
    assert slider in service.client.get("/").text
