"""The account of a hostile load: what counts as explained, and what the gates say."""

import json

import pytest

from benchmarks.hostile.client import Reply, form
from benchmarks.hostile.ledger import (
    FAILED,
    HUNG,
    INJECTED,
    LOST,
    REFUSED,
    RIGHT,
    UNDOCUMENTED,
    WRONG,
    Disturbance,
    Ledger,
    settle,
)
from benchmarks.hostile.operator import marker_image
from benchmarks.hostile.questions import canonical
from benchmarks.hostile.report import probe_figures, unreported_hangs
from benchmarks.hostile.server import MARKERS, marker_of
from moleflow.model.images.decode import open_rgb
from moleflow.model.images.preprocessing import Preprocessing


def problem(status: int) -> Reply:
    return Reply(status, {"content-type": "application/problem+json"}, json.dumps({"status": status}).encode())


def trouble(outcome: str, start: float, end: float) -> Ledger:
    ledger = Ledger()
    ledger.trouble("a", "b", outcome, "", start)
    ledger.troubles = [
        type(one)(one.activity, one.sent, one.outcome, one.detail, start, end) for one in ledger.troubles
    ]
    return ledger


@pytest.mark.parametrize("outcome", [FAILED, LOST, UNDOCUMENTED])
def test_a_disturbance_explains_a_failure_at_its_time_only(outcome: str) -> None:
    assert settle(trouble(outcome, 1, 3), [Disturbance("hang", 2, 5)]) == []
    assert len(settle(trouble(outcome, 1, 3), [Disturbance("hang", 4, 5)])) == 1


@pytest.mark.parametrize("outcome", [WRONG, HUNG])
def test_nothing_explains_a_wrong_answer_or_none(outcome: str) -> None:
    assert len(settle(trouble(outcome, 1, 3), [Disturbance("hang", 0, 9)])) == 1


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply(200), RIGHT),
        (problem(413), REFUSED),
        (problem(406), UNDOCUMENTED),
        (Reply(413), UNDOCUMENTED),
        (problem(500), FAILED),
        (Reply(302), UNDOCUMENTED),
    ],
)
def test_a_status_is_right_refused_or_trouble(reply: Reply, outcome: str) -> None:
    ledger = Ledger()
    ledger.judge("a", "b", reply, 0, expected={413})
    assert [*(name for _, name in ledger.counts), *(one.outcome for one in ledger.troubles)] == [outcome]


def test_a_failure_that_was_asked_for_is_the_injected_one() -> None:
    ledger = Ledger()
    ledger.judge("a", "b", problem(500), 0, fails=True)
    assert dict(ledger.counts) == {("a", INJECTED): 1}


def test_only_durations_may_differ_between_two_answers() -> None:
    def answer(**fields: object) -> bytes:
        return canonical(Reply(200, {"content-type": "application/json"}, json.dumps(fields).encode()))

    assert answer(score=1, timing_ms=2) == answer(score=1, timing_ms=3)
    assert answer(score=1) != answer(score=2)
    assert canonical(Reply(200, {"moleflow-score": "1"}, b"x")) != canonical(Reply(200, {"moleflow-score": "2"}, b"x"))


@pytest.mark.parametrize("name", MARKERS)
def test_a_marker_is_known_by_its_colour_at_the_models_size(name: str) -> None:
    pixels = open_rgb(marker_image(name))
    assert marker_of(Preprocessing(image_size=48, mean=(0, 0, 0), std=(1, 1, 1)).resize(pixels)) == name


def test_a_probe_that_fails_in_peace_counts_and_one_in_a_disturbance_does_not() -> None:
    rows = [(0.0, 0.1, 200), (1.0, 0.1, 503), (5.0, 0.1, 0)]
    found = probe_figures(rows, [Disturbance("fail", 0.9, 1.2)], [])
    assert (found["count"], found["failed"]) == (3, 1)


def test_a_hang_that_readiness_did_not_tell_counts() -> None:
    hang = Disturbance("hang", 10, 20)
    assert unreported_hangs(Ledger(probes={"/health/ready": [(12.0, 0.1, 200)]}), [hang]) == 1
    assert unreported_hangs(Ledger(probes={"/health/ready": [(12.0, 0.1, 503)]}), [hang]) == 0


def test_a_form_has_a_part_for_each_field() -> None:
    body, headers = form([("map", b"none"), ("file", b"image")])
    boundary = headers["Content-Type"].rpartition("=")[2].encode()
    assert body.count(b"--" + boundary) == 3
    assert b'name="file"; filename="image"\r\n\r\nimage\r\n' in body
