"""What the stages have measured, in one folder.

A stage that runs writes ``NAME.json`` and ``NAME.log``. When it has ended, they become part of ``gpu.json`` and
``gpu.log``, so that the folder holds few files at any time, whenever the command is stopped.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moleflow.model.files.atomic import atomic_write

__all__ = ["FAILED", "MEASURED", "NOT_MEASURED", "STOPPED", "Records", "write_json"]

MEASURED, STOPPED, FAILED, NOT_MEASURED = "measured", "stopped", "failed", "not measured"
"""States of a stage: whole; ended early with what it had; crashed; or something that it needs is missing."""

LONGEST_LOG = 2_000_000
"""Bytes of one stage's log that are kept: its end, where an error is."""


class Records:
    """The records of all stages in ``folder``, by name: state, reason, seconds, date and result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def whole(self) -> Path:
        """The file of all records."""
        return self.folder / "gpu.json"

    def file(self, name: str) -> Path:
        """What a stage writes while it runs."""
        return self.folder / f"{name}.json"

    def log(self, name: str) -> Path:
        """The output of a stage while it runs."""
        return self.folder / f"{name}.log"

    def read(self) -> dict[str, dict[str, Any]]:
        """All records. A damaged file counts as missing."""
        found = dict(_read(self.whole).get("stages", {}))
        for path in self.folder.glob("*.json"):
            record = _read(path)
            if path != self.whole and "state" in record:
                found[path.stem] = record
        return found

    def is_done(self, name: str) -> bool:
        """Whether a stage need not run again."""
        return self.read().get(name, {}).get("state") == MEASURED

    def recover(self, names: Iterable[str]) -> None:
        """Fold what stages left behind whose command was killed."""
        for name in names:
            if self.file(name).exists() or self.log(name).exists():
                self.fold(name)

    def write(
        self,
        name: str,
        state: str,
        result: Mapping[str, Any],
        reason: str = "",
        seconds: float = 0,
        warnings: Sequence[str] = (),
    ) -> None:
        """Write a stage's own file."""
        date = time.strftime("%Y-%m-%d %H:%M")
        record = {
            "state": state,
            "reason": reason,
            "seconds": round(seconds, 1),
            "date": date,
            "warnings": list(warnings),
            "result": dict(result),
        }
        write_json(self.file(name), record)

    def fold(self, name: str) -> None:
        """Move a stage's record and log into the files of all."""
        write_json(self.whole, {"stages": self.read()})
        self.file(name).unlink(missing_ok=True)
        log = self.log(name)
        if log.exists():
            text = log.read_bytes()[-LONGEST_LOG:].decode("utf-8", "replace")
            with (self.folder / "gpu.log").open("a", encoding="utf-8") as file:
                file.write(f"===== {name}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n{text.rstrip()}\n\n")
            log.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
