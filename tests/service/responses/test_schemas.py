"""The JSON response, which the command line also prints."""

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from dummy import calibration, encode_map

from moleflow.model.errors import ExpertError
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.results import MAX_CANDIDATES, Candidate, CheckpointInfo, Finding, Prediction, Refusal
from moleflow.service.responses.build import build_response
from moleflow.service.responses.schemas import PredictionResponse, Timing

TIMING = Timing(decode=1, queue=2, inference=3, encode=4)
CALIBRATION = TaskCalibration(
    scores=calibration(4.0), peaks=calibration(2.5), grounds=calibration(1.0), distances=calibration(100.0)
)


def predict(products: int = 3, chosen: int = 0, score: float = 5.0) -> Prediction:
    candidates = tuple(Candidate(f"product {i}", i, 10.0 * (i + 1), 0.5 / (i + 1), 0.25 * i) for i in range(products))
    grid = np.arange(4, dtype=np.float32).reshape(2, 2)
    return Prediction(candidates, candidates[chosen], score, grid, 64, CALIBRATION, novelty_score=0.25)


def build(finding: Finding, **options: Any) -> PredictionResponse:
    info = CheckpointInfo("factory.safetensors", "12ab")
    return build_response(finding, checkpoint=info, width=30, height=20, timing=TIMING, **options)


def test_the_response_has_the_fields_of_the_api() -> None:
    values = np.array([[-1.0, 3.0]], np.float32)
    found = json.loads(build(predict(), anomaly_map=encode_map(values, "npy")).model_dump_json())
    assert found.pop("anomaly_map").keys() == {"encoding", "dtype", "shape", "minimum", "maximum", "data"}
    [region] = found.pop("regions")
    assert region.keys() == {"x", "y", "width", "height", "area_fraction", "peak", "peak_x", "peak_y"}
    assert found == {
        "id": None,
        "verdict": "anomalous",
        "task": {"name": "product 0", "index": 0},
        "routing": {
            "distance": 10.0,
            "margin": 10.0,
            "candidates": [
                {"name": "product 0", "index": 0, "distance": 10.0, "p_value": 0.5, "distance_ratio": 0.0},
                {"name": "product 1", "index": 1, "distance": 20.0, "p_value": 0.25, "distance_ratio": 0.25},
                {
                    "name": "product 2",
                    "index": 2,
                    "distance": 30.0,
                    "p_value": pytest.approx(1 / 6),
                    "distance_ratio": 0.5,
                },
            ],
            "novelty_score": 0.25,
            "forced": False,
        },
        "score": 5.0,
        "p_value": CALIBRATION.scores.p_value(5.0),
        "threshold": pytest.approx(4.0),
        "false_alarm_rate": 0.01,
        "is_anomalous": True,
        "pixel_threshold": pytest.approx(2.5),
        "inspected": None,
        "warnings": [],
        "image": {"width": 30, "height": 20},
        "checkpoint": {"name": "factory.safetensors", "digest": "12ab"},
        "timing_ms": {"decode": 1.0, "queue": 2.0, "inference": 3.0, "encode": 4.0},
    }


def test_an_unknown_product_has_candidates_and_null_for_all_expert_fields() -> None:
    found = json.loads(build(Refusal(predict().candidates, false_alarm_rate=0.05)).model_dump_json())
    assert found["verdict"] == "unknown_product"
    absent = ("task", "score", "p_value", "threshold", "is_anomalous", "pixel_threshold", "anomaly_map")
    assert [found[name] for name in absent] == [None] * 7
    assert found["regions"] == []
    assert found["false_alarm_rate"] == 0.05
    assert [candidate["name"] for candidate in found["routing"]["candidates"]] == [f"product {i}" for i in range(3)]
    assert found["routing"]["distance"] == 10.0


def test_the_false_alarm_rate_changes_both_thresholds_but_neither_score_nor_p_value() -> None:
    usual, strict = build(predict(score=4.1)), build(predict(score=4.1).at(0.001))
    assert (usual.verdict, strict.verdict) == ("anomalous", "good")
    assert (strict.score, strict.p_value, strict.false_alarm_rate) == (usual.score, usual.p_value, 0.001)
    assert usual.threshold is not None
    assert strict.threshold is not None
    assert strict.threshold > usual.threshold
    assert len(strict.regions) <= len(usual.regions)


def test_without_a_map_the_field_is_null() -> None:
    assert json.loads(build(predict()).model_dump_json())["anomaly_map"] is None


def test_with_one_product_there_is_no_margin() -> None:
    assert math.isinf(predict(products=1).margin)
    assert json.loads(build(predict(products=1)).model_dump_json())["routing"]["margin"] is None


def test_only_the_nearest_products_are_listed() -> None:
    candidates = build(predict(products=9)).routing.candidates
    assert [candidate.index for candidate in candidates] == list(range(MAX_CANDIDATES))


def test_a_named_product_reports_its_own_distance_even_when_it_is_far() -> None:
    response = build(predict(products=9, chosen=8), forced=True)
    assert (response.task.index, response.routing.distance, response.routing.forced) == (8, 90.0, True)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_represent_is_rejected(score: float) -> None:
    with pytest.raises(ExpertError, match="not finite"):
        build(predict(score=score))


def test_warnings_are_in_the_response() -> None:
    assert build(dataclasses.replace(predict(), warnings=("it is dark",))).warnings == ["it is dark"]


def test_negative_scores_are_unchanged() -> None:
    assert build(predict(score=-1234.5)).score == -1234.5


def test_the_schemas_need_no_web_framework() -> None:
    names = "encode, render, schemas"
    code = f"import sys; from moleflow.service.responses import {names}; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
