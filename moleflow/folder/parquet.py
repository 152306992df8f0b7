"""Output as Parquet. A Parquet file cannot grow: rows gather in a file beside it and are merged at the end."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moleflow.folder.output import Row, RowFile
from moleflow.folder.rows import COLUMNS, Known, flatten
from moleflow.model.errors import ConfigurationError
from moleflow.model.files.atomic import atomic_write
from moleflow.model.files.outputs import check_output, reason, writing

if TYPE_CHECKING:
    import pyarrow

__all__ = ["KNOWN_COLUMNS", "ParquetOutput", "row_schema"]

_GROUP_ROWS = 10_000
"""Rows in a group, which is the part that is in memory: about 20 MB."""

KNOWN_COLUMNS = (
    "path",
    "file_size",
    "file_modified",
    "error_type",
    "verdict",
    "checkpoint_digest",
    "false_alarm_rate",
    "routing_forced",
    "task_name",
)
"""The columns that ``Known`` is made of."""


class ParquetOutput:
    """Rows gather in ``NAME.part.jsonl``, which ``finish`` merges with the existing file into a new one."""

    def __init__(self, path: Path) -> None:
        self._schema = row_schema()
        check_output("the output", path)
        self._path, self._rows_path = path, path.with_name(f"{path.name}.part.jsonl")
        self._rows = RowFile(self._rows_path)
        self._stored: set[int] = set()

    def known(self) -> Iterator[Known]:
        for batch in self._stored_batches(KNOWN_COLUMNS):
            for row in batch.to_pylist():
                known = Known.of(row)
                self._stored.add(known.state.key(known.path))
                yield known
        yield from self._rows.known()

    def append(self, rows: Iterable[Row]) -> None:
        self._rows.append(rows)

    def finish(self) -> None:
        """Write the Parquet file atomically, then remove the rows beside it."""
        import pyarrow
        import pyarrow.parquet

        self._rows.finish()
        with (
            writing("the output", self._path),
            atomic_write(self._path) as temporary,
            pyarrow.parquet.ParquetWriter(temporary, self._schema) as writer,
        ):
            for batch in self._stored_batches():
                writer.write_batch(batch)
            with self._rows_path.open("rb") as file:
                rows = (row for row in map(_flat, file) if not self._is_stored(row))
                while group := list(itertools.islice(rows, _GROUP_ROWS)):
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(group, self._schema))
        self._rows_path.unlink()

    def close(self) -> None:
        self._rows.close()

    def _is_stored(self, row: dict[str, Any]) -> bool:
        """Whether a row is in the Parquet file too, because a kill came between writing it and removing the rows."""
        known = Known.of(row)
        return known.error is None and known.state.key(known.path) in self._stored

    def _stored_batches(self, columns: Iterable[str] | None = None) -> "Iterator[pyarrow.RecordBatch]":
        import pyarrow
        import pyarrow.parquet

        if not self._path.exists() or not self._path.stat().st_size:
            return
        names = None if columns is None else list(columns)
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                if not file.schema_arrow.equals(self._schema):
                    raise ConfigurationError(
                        f"the output {str(self._path)!r} has other columns than this version writes; choose another "
                        "name."
                    )
                yield from file.iter_batches(_GROUP_ROWS, columns=names)
        except (pyarrow.ArrowInvalid, OSError) as error:
            text = reason(error) if isinstance(error, OSError) else str(error)
            raise ConfigurationError(
                f"the output {str(self._path)!r} cannot be read as Parquet ({text}); choose another name."
            ) from error


def _flat(line: bytes) -> dict[str, Any]:
    return flatten(json.loads(line))


def row_schema() -> "pyarrow.Schema":
    """The columns of a file of rows. ``ConfigurationError`` if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed: pip install 'moleflow[parquet]', or let the output end in "
            ".csv or .jsonl."
        ) from error
    types = {
        "string": pyarrow.string(),
        "json": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
    }
    return pyarrow.schema([(column.name, types[column.kind]) for column in COLUMNS])
