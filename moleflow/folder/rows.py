"""Rows of the output: the API's response for one image with its file, as JSON or flattened into columns."""

import csv
import io
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel

from moleflow.service.responses.schemas import PredictionResponse

__all__ = ["COLUMNS", "Column", "FileState", "Known", "as_csv", "as_json", "flatten", "from_csv", "from_json"]

Kind = Literal["string", "integer", "number", "boolean", "json"]
"""The type of a column; ``json`` is text that holds JSON."""

_KEY_BYTES = 8
"""Length of the hash that stands for a path and its state: a million files collide with a probability of 3e-8."""


@dataclass(frozen=True, slots=True)
class FileState:
    """The state by which a changed file is recognised: size in bytes, and time of modification in seconds since 1970.

    Both are ``None`` if the file cannot be found.
    """

    size: int | None
    modified: float | None

    def key(self, path: str) -> int:
        """A hash of the path and this state."""
        text = f"{path}\0{self.size}\0{self.modified!r}".encode("utf-8", "backslashreplace")
        return int.from_bytes(blake2b(text, digest_size=_KEY_BYTES).digest(), "big")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a flat row, and where its value lies in the nested one."""

    name: str
    kind: Kind
    place: tuple[str, ...]


def _columns(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[Column]:
    for name, field in model.model_fields.items():
        here = (*place, name)
        inner = _without_none(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _columns(inner, here)
        else:
            yield Column("_".join(here), _kind(inner), here)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (each for each in get_args(annotation) if each is not type(None))
    return annotation


def _kind(annotation: Any) -> Kind:
    if get_origin(annotation) is not None:
        return "json"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if issubclass(annotation, kind):
            return name  # type: ignore[return-value]
    raise TypeError(f"no column can hold {annotation}")


COLUMNS = (
    Column("path", "string", ("path",)),
    Column("file_size", "integer", ("file", "size")),
    Column("file_modified", "number", ("file", "modified")),
    Column("error_type", "string", ("error", "type")),
    Column("error_detail", "string", ("error", "detail")),
    *(column for column in _columns(PredictionResponse) if column.place[0] != "anomaly_map"),
)
"""The columns of CSV and Parquet. Maps are left out: in a table they would be megabytes of base64 in each row."""


@dataclass(frozen=True, slots=True)
class Known:
    """What an existing row says that continuing the output needs."""

    path: str
    state: FileState
    error: str | None
    verdict: str | None
    checkpoint: str
    false_alarm_rate: float | None
    forced: bool | None
    task: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Of a flat row. Raises ``KeyError`` and ``TypeError`` for one that is not ours."""
        size, modified = row["file_size"], row["file_modified"]
        return cls(
            path=row["path"],
            state=FileState(None if size is None else int(size), None if modified is None else float(modified)),
            error=row["error_type"],
            verdict=row["verdict"],
            checkpoint=row["checkpoint_digest"],
            false_alarm_rate=row["false_alarm_rate"],
            forced=row["routing_forced"],
            task=row["task_name"],
        )


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all ``COLUMNS``; ``None`` where the row has none. Lists become JSON."""
    return {column.name: _value(row, column) for column in COLUMNS}


def _value(row: Mapping[str, Any], column: Column) -> Any:
    value: Any = row
    for name in column.place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return json.dumps(value) if column.kind == "json" and value is not None else value


def as_json(row: Mapping[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(row).encode() + b"\n"


def from_json(record: bytes) -> dict[str, Any]:
    """The flat row in a line. Raises ``ValueError`` if it is not a JSON object."""
    row = json.loads(record)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    return flatten(row)


def as_csv(values: Mapping[str, Any] | None = None) -> bytes:
    """One record of a flat row, or without one the header (RFC 4180). Missing values are empty."""
    text = io.StringIO()
    fields = [column.name if values is None else _as_field(values[column.name]) for column in COLUMNS]
    csv.writer(text).writerow(fields)
    return text.getvalue().encode()


def _as_field(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def from_csv(record: bytes) -> dict[str, Any]:
    """The flat row in a record. Raises ``ValueError`` if it has other columns or values."""
    (fields,) = csv.reader(io.StringIO(record.decode(), newline=""))
    return {column.name: _from_field(column, text) for column, text in zip(COLUMNS, fields, strict=True)}


def _from_field(column: Column, text: str) -> Any:
    if text == "":
        return None
    if column.kind == "boolean":
        return {"true": True, "false": False}[text]
    return {"integer": int, "number": float, "string": str, "json": str}[column.kind](text)
