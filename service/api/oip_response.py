"""Responses of the Open Inference Protocol: results of images as tensors, in JSON or as binary data."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException
from pydantic_core import to_json

from moleflow.model.verdict.results import Finding, Prediction
from moleflow.service.api.oip_request import LENGTH_HEADER, InferRequest
from moleflow.service.errors import NotReadyError

__all__ = ["MAP", "OUTPUTS", "Answer", "InferResponse", "make_response", "wanted_outputs"]

MAP = "map"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in one image: the id for feedback, and the map ``(side, side)`` float32 if there is one."""

    identifier: str
    finding: Finding
    values: np.ndarray | None = None

    def number(self, name: str) -> float:
        """A number of the result; NaN where an unknown product has none."""
        return getattr(self.finding, name) if isinstance(self.finding, Prediction) else math.nan


OUTPUTS: dict[str, tuple[str, Callable[[Answer], str | float]]] = {
    "verdict": ("BYTES", lambda answer: answer.finding.verdict.value),
    "task": ("BYTES", lambda answer: answer.finding.task.name if isinstance(answer.finding, Prediction) else ""),
    "score": ("FP32", lambda answer: answer.number("score")),
    "p_value": ("FP32", lambda answer: answer.number("p_value")),
    "threshold": ("FP32", lambda answer: answer.number("threshold")),
    "novelty_score": ("FP32", lambda answer: answer.finding.novelty_score),
    "id": ("BYTES", lambda answer: answer.identifier),
}
"""The outputs with one value per image: their types and where they come from. ``MAP`` has a map per image."""


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The body in pieces, and its headers; one of them is its media type."""

    pieces: tuple[bytes | memoryview, ...]
    media_type: str
    headers: dict[str, str]


def wanted_outputs(request: InferRequest) -> tuple[tuple[str, bool], ...]:
    """The outputs of a request, each with whether it is binary. Raises ``HTTPException`` 400 for others."""
    known = (*OUTPUTS, MAP)
    wanted = request.outputs
    if wanted is None:
        return tuple((name, request.is_binary) for name in known)
    for name, _ in wanted:
        if name not in known:
            raise HTTPException(400, f"There is no output {name[:40]!r}; the outputs are {', '.join(known)}.")
    if len({name for name, _ in wanted}) < len(wanted):
        raise HTTPException(400, "An output is asked for twice.")
    return wanted


def make_response(model: str, request: InferRequest, answers: Sequence[Answer], side: int) -> InferResponse:
    """The response; takes time in proportion to the maps. ``side`` is that of maps if no image has one.

    Raises ``NotReadyError`` if the model was replaced by one with larger or smaller maps between two images.
    """
    described: list[bytes] = []
    binary: list[bytes | memoryview] = []
    for name, is_binary in wanted_outputs(request):
        datatype, shape, values = _tensor(name, answers, side)
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if is_binary:
            pieces = _binary(values)
            binary += pieces
            described.append(to_json(entry | {"parameters": {"binary_data_size": sum(map(len, pieces))}}))
        else:
            # Map by map, so that other threads get their turn.
            data = b",".join(to_json(part, inf_nan_mode="null")[1:-1] for part in _parts(values))
            described.append(to_json(entry)[:-1] + b',"data":[' + data + b"]}")
    head = {"model_name": model} | ({} if request.identifier is None else {"id": request.identifier})
    document = to_json(head)[:-1] + b',"outputs":[' + b",".join(described) + b"]}"
    if not binary:
        return InferResponse((document,), "application/json", {})
    return InferResponse((document, *binary), "application/octet-stream", {LENGTH_HEADER: str(len(document))})


Values = list[str] | np.ndarray
"""Strings, or float32 with the tensor's shape."""


def _tensor(name: str, answers: Sequence[Answer], side: int) -> tuple[str, list[int], Values]:
    """An output's type, shape and values."""
    if name == MAP:
        maps = _maps(answers, side)
        return "FP32", list(maps.shape), maps
    datatype, value_of = OUTPUTS[name]
    values = [value_of(answer) for answer in answers]
    if datatype == "BYTES":
        return datatype, [len(values)], [str(value) for value in values]
    return datatype, [len(values)], np.array(values, np.float32)


def _maps(answers: Sequence[Answer], side: int) -> np.ndarray:
    """The maps of all images, ``(N, side, side)``; NaN where there is none."""
    found = [answer.values for answer in answers if answer.values is not None]
    shapes = {values.shape for values in found} or {(side, side)}
    if len(shapes) > 1:
        raise NotReadyError("The model was replaced during the request; send it again.")
    maps = np.full((len(answers), *shapes.pop()), np.nan, np.float32)
    for row, answer in enumerate(answers):
        if answer.values is not None:
            maps[row] = answer.values
    return maps


def _binary(values: Values) -> list[bytes | memoryview]:
    """Little-endian numbers, or strings each after its length in four bytes."""
    if isinstance(values, np.ndarray):
        return [np.ascontiguousarray(values, "<f4").data.cast("B")]
    encoded = [value.encode() for value in values]
    return [b"".join(len(each).to_bytes(4, "little") + each for each in encoded)]


def _parts(values: Values) -> Iterable[list[Any]]:
    """The values as flat lists, one for each map."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return (each.ravel().tolist() for each in values)
    return [values.tolist() if isinstance(values, np.ndarray) else values]
