"""Output files that grow by rows: JSON lines and CSV. Appending resumes after the last complete row."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from moleflow.folder.rows import Known, as_csv, as_json, flatten, from_csv, from_json
from moleflow.model.errors import ConfigurationError
from moleflow.model.files.file_lock import has_no_locks, lock_open_file
from moleflow.model.files.outputs import check_output, writing

__all__ = ["FORMATS", "Output", "RowFile", "open_output"]

FORMATS = (".csv", ".jsonl", ".parquet")
"""Endings of output files."""

_MAX_ROW_BYTES = 2**20
"""Many times the longest row: a longer incomplete one is not the rest of a cut line."""

_WHAT = "the output"

Row = Mapping[str, Any]
"""A nested row: the API's response with ``path``, ``file`` and ``error``."""


class Output(Protocol):
    """A file of rows."""

    def known(self) -> Iterator[Known]:
        """The rows that are already there; must be read to the end before the first ``append``."""

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows, so that a kill loses none of them."""

    def finish(self) -> None:
        """Complete the file after the last row."""

    def close(self) -> None:
        """Release the file, finished or not."""


def open_output(path: Path) -> Output:
    """The output at ``path``, in the format that its name ends in, one of ``FORMATS``; created if missing.

    Raises:
        ConfigurationError: the library of the format is missing, or the file cannot be written.
    """
    if path.suffix.lower() == ".parquet":
        from moleflow.folder.parquet import ParquetOutput

        return ParquetOutput(path)
    return RowFile(path)


class RowFile:
    """JSON lines, or CSV if the name ends so. Locked while it is open."""

    def __init__(self, path: Path) -> None:
        check_output(_WHAT, path)
        self._path, self._is_csv = path, path.suffix.lower() == ".csv"
        with writing(_WHAT, path):
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            locked = lock_open_file(self._file.fileno())
        except OSError as error:
            if not has_no_locks(error):
                raise
            locked = True
        if not locked:
            self._file.close()
            raise ConfigurationError(
                f"the output {str(path)!r} is in use by another run; choose another name, or wait."
            )

    def known(self) -> Iterator[Known]:
        """The rows that are there. Afterwards the file is ready for more; a cut last row is removed."""
        end, broken = 0, ""
        for number, (record, complete) in enumerate(self._records(), start=1):
            if broken:
                raise ConfigurationError(f"{broken} Repair it, or choose another name.")
            try:
                if self._is_csv and number == 1:
                    self._check_header(record, complete)
                    row = None
                else:
                    row = self._parse(record)
                if not complete:
                    raise ValueError("without an end of line")
            except (ValueError, KeyError, TypeError) as error:
                broken = f"row {number} of the output {str(self._path)!r} cannot be read: {error}."
                self._check_is_ours(record, number)
                continue
            end += len(record)
            if row is not None:
                yield row
        if broken:
            print(f"warning: {broken} It was cut, and is removed.", file=sys.stderr)
        with writing(_WHAT, self._path):
            self._file.seek(end)
            self._file.truncate()
            if self._is_csv and not end:
                self._file.write(as_csv())
                self._file.flush()

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows to the file system at once, so that a killed process loses none."""
        form: Callable[[Row], bytes] = (lambda row: as_csv(flatten(row))) if self._is_csv else as_json
        with writing(_WHAT, self._path):
            self._file.write(b"".join(form(row) for row in rows))
            self._file.flush()

    def finish(self) -> None:
        with writing(_WHAT, self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(_WHAT, self._path):
            self._file.close()

    def _records(self) -> Iterator[tuple[bytes, bool]]:
        """Each record of the file, and whether it is complete; a CSV record may span lines between quotation marks."""
        self._file.seek(0)
        record = b""
        while line := self._file.readline(_MAX_ROW_BYTES + 1):
            record += line
            if line.endswith(b"\n") and not (self._is_csv and record.count(b'"') % 2):
                yield record, True
                record = b""
            elif len(record) > _MAX_ROW_BYTES:
                break
        if record:
            yield record, False

    def _parse(self, record: bytes) -> Known:
        return Known.of(from_csv(record) if self._is_csv else from_json(record))

    def _check_header(self, record: bytes, complete: bool) -> None:
        header = as_csv()
        if record != header and (complete or not header.startswith(record)):
            raise ConfigurationError(
                f"the output {str(self._path)!r} has other columns than this version writes; choose another name."
            )

    def _check_is_ours(self, record: bytes, number: int) -> None:
        """Never remove what another program may have written."""
        start = b'{"path": '
        is_cut = len(record) <= _MAX_ROW_BYTES and (
            self._is_csv or start.startswith(record) or record.startswith(start)
        )
        if not is_cut and record.strip(b"\0\r\n"):
            raise ConfigurationError(
                f"row {number} of the output {str(self._path)!r} is not one that `moleflow predict` writes; choose "
                "another name."
            )
