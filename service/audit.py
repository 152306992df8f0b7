"""The record of every change of what is served, or of what it is taught: who, what, when, and digests before and after.

It goes to the log ``moleflow.audit`` and, if one is set, to a file that is only ever appended to, one JSON object a
line.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from moleflow.model.errors import ConfigurationError, describe
from moleflow.model.verdict.records import CheckpointInfo, TaskInfo

__all__ = ["Audit", "Change"]

_logger = logging.getLogger("moleflow.audit")

_ADDED = ("threshold", "sha256", "profile_sha256")
"""What is recorded of a product that came or went; of one that stayed, everything that changed."""


_MAX_VALUE = 1000
"""Characters of a value; longer ones are recorded as their digest."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, and by whom: the owner of the API key, if any, the address, and the id of the request."""

    action: str
    client: str | None = None
    address: str | None = None
    request_id: str | None = None
    what: Mapping[str, Any] = field(default_factory=dict)
    """What the request asked for."""


class _Served(Protocol):
    @property
    def checkpoint(self) -> CheckpointInfo: ...

    @property
    def tasks(self) -> Sequence[TaskInfo]: ...


class Audit:
    """Appends to the file ``path``, which may be moved away at any time. Raises ``ConfigurationError`` if it cannot."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self._append(b"")
        except OSError as error:
            raise ConfigurationError(
                f"audit_log (MOLEFLOW_AUDIT_LOG) cannot be {str(path)!r}: {error.strerror or describe(error)}. Name a "
                "file in a folder that the service may write to."
            ) from error

    def record(self, change: Change) -> None:
        """Record something that changes nothing that is served. Blocks until it is on the disk."""
        self._write(change, {})

    def record_served(self, change: Change, before: _Served, after: _Served) -> None:
        """Record that other products, or other values of theirs, are served from now on. Blocks as ``record``."""
        self._write(
            change,
            {
                "before": before.checkpoint.digest,
                "after": after.checkpoint.digest,
                "products": _difference(before.tasks, after.tasks),
            },
        )

    def record_failure(self, change: Change, before: _Served, reason: str) -> None:
        """Record that what was done could not be served. Blocks as ``record``."""
        self._write(change, {"before": before.checkpoint.digest, "after": None, "failed": reason})

    def _write(self, change: Change, details: Mapping[str, Any]) -> None:
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(change), **details}
        _logger.info(
            "%s by %s at %s: %s",
            change.action,
            change.client or "a client without a key" if change.address is not None else "the service",
            change.address or "this machine",
            json.dumps({"what": change.what, **details}),
            extra={"fields": {name: value for name, value in entry.items() if name != "time"}},
        )
        try:
            self._append(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            _logger.error("The audit log %s cannot be written: %s", self._path, error.strerror or describe(error))

    def _append(self, line: bytes) -> None:
        if self._path is None:
            return
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # One write, so that lines of several processes do not mix.
            if line and os.write(file, line) < len(line):
                raise OSError(None, "the disk is full")
            os.fsync(file)
        finally:
            os.close(file)


def _difference(before: Sequence[TaskInfo], after: Sequence[TaskInfo]) -> dict[str, dict[str, Any]]:
    """Products that came and went, and ``[before, after]`` of every field that changed in the others."""
    old, new = {task.name: task for task in before}, {task.name: task for task in after}
    return {
        "added": {
            name: task.model_dump(mode="json", include=set(_ADDED)) for name, task in new.items() if name not in old
        },
        "removed": {
            name: task.model_dump(mode="json", include=set(_ADDED)) for name, task in old.items() if name not in new
        },
        "changed": {name: _fields(old[name], task) for name, task in new.items() if old.get(name, task) != task},
    }


def _fields(before: TaskInfo, after: TaskInfo) -> dict[str, list[Any]]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {name: [_short(old[name]), _short(new[name])] for name in old if old[name] != new[name]}


def _short(value: Any) -> Any:
    """A value of JSON, or the digest of one that is as long as the outlines of an area may be."""
    text = json.dumps(value)
    return value if len(text) <= _MAX_VALUE else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
