"""The soak test sends every kind of request, and its gates say what they should."""

import os
from typing import Any

import pytest
from running import run_server
from sample_images import encoded, sample_image

from benchmarks.shared.process_tree import usage
from benchmarks.speed.soak import judge, markdown, soak

GOOD: dict[str, Any] = {
    "unexpected": [],
    "left": {"queue_length": 0.0, "requests_in_progress": 0.0},
    "memory": {"growth": 0.01},
    "open_files": [20, 20],
}


def resident() -> int:
    found = usage(os.getpid())
    assert found is not None
    return found.resident


def test_every_kind_of_request_gets_the_status_that_it_should() -> None:
    with run_server() as running:
        result = soak(running.url, os.getpid(), [encoded(sample_image())], 4, 2.5, resident)
    kinds = {kind for kind, *_ in result["answers"]}
    assert kinds == {"single", "several", "tensors", "hurried", "broken", "gone"}
    assert result["unexpected"] == []
    assert sum(result["left"].values()) == 0
    assert result["given_up"] > 0
    assert result["in_batches"] >= result["predicted"] > 0
    assert "got no answer" in markdown(result | {"date": "", "minutes": 1, "clients": 4})


@pytest.mark.parametrize(
    "changed",
    [
        {"unexpected": [["single", 500, 1]]},
        {"left": {"queue_length": 1.0, "requests_in_progress": 0.0}},
        {"memory": {"growth": 0.03}},
        {"open_files": [20, 21]},
    ],
)
def test_each_gate_fails_for_its_reason(changed: dict[str, Any]) -> None:
    assert all(gate.passed for gate in judge(GOOD))
    assert [gate.passed for gate in judge(GOOD | changed)].count(False) == 1
