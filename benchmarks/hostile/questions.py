"""Questions to the service whose answers are known: good images in every kind of request."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.hostile.client import LostError, Reply, ask, form
from benchmarks.hostile.images import good_images
from benchmarks.hostile.parts import encoded
from benchmarks.hostile.target import BYTES

__all__ = ["Question", "ask_question", "canonical", "expected_answers", "questions"]

ROUTING_DIGITS = 4
"""Compared digits of the router's numbers; single precision has seven."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request with a known answer."""

    name: str
    image: bytes
    query: str
    accept: str = "application/json"
    is_form: bool = False


def questions() -> Iterator[Question]:
    """Good images of every format and size, in every kind of request."""
    noise = np.random.default_rng(2).integers(0, 255, (400, 600, 3), np.uint8)
    images = good_images() | {"png_600": encoded(noise, "PNG"), "jpeg_600": encoded(noise, "JPEG")}
    queries = (
        "?map=none",
        "?map=png",
        "?map=npy&map_size=model",
        "?map=none&task=noise0",
        "?false_alarm_rate=0.1&map=none",
    )
    accepts = ("image/png", "application/x-npy")
    for number, (name, data) in enumerate(images.items()):
        for turn in (number, number + 2):
            query = queries[turn % len(queries)]
            yield Question(f"{name}{query}", data, query, is_form=turn % 3 == 0)
        accept = accepts[number % len(accepts)]
        yield Question(f"{name} {accept}", data, "", accept)


async def ask_question(port: int, question: Question) -> Reply:
    """Ask once."""
    body, headers = form([("file", question.image)]) if question.is_form else (question.image, BYTES)
    return await ask(port, "POST", "/predict" + question.query, body, headers | {"Accept": question.accept})


def canonical(reply: Reply) -> bytes:
    """What must be the same in every answer: the verdict's headers, and the body without the durations.

    Scores and maps are compared bit by bit. The router's numbers are rounded: a matrix product may sum in another order
    for another batch size.
    """
    if reply.headers.get("content-type", "").startswith("application/json"):
        answer = reply.json()
        for own in ("timing_ms", "id"):
            answer.pop(own, None)
        answer["routing"] = _rounded(answer.get("routing"))
        return json.dumps(answer, sort_keys=True).encode()
    headers = sorted(
        item for item in reply.headers.items() if item[0].startswith("moleflow-") and item[0] != "moleflow-id"
    )
    return repr(headers).encode() + reply.body


def _rounded(value: Any) -> Any:
    """``value`` with every number in it at ``ROUTING_DIGITS`` digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{ROUTING_DIGITS}g}") if isinstance(value, float) else value


async def expected_answers(port: int) -> dict[str, bytes]:
    """The answers that a service gives without load."""
    answers = {}
    for question in questions():
        reply = await ask_question(port, question)
        if reply.status != 200:
            raise LostError(f"{question.name}: a good image got {reply.status} {reply.body[:300]!r}")
        answers[question.name] = canonical(reply)
    return answers
