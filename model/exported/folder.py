"""An exported folder, read and verified: whatever is used was hashed first."""

import hashlib
from pathlib import Path
from typing import Self

import safetensors
import safetensors.numpy

from moleflow.model.errors import (
    CheckpointDigestError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    one_line,
)
from moleflow.model.exported import manifest as manifests
from moleflow.model.exported.manifest import MANIFEST, Manifest, parse_manifest
from moleflow.model.files.file_names import as_text
from moleflow.model.store import header as headers
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.results import CheckpointInfo

__all__ = ["ExportedFolder", "is_exported"]

_LONGEST_MANIFEST = 200_000_000
"""Bytes of a manifest; one of 100,000 products has some 100 MB."""

_AGAIN = "export the checkpoint again with `moleflow export`"


def is_exported(path: Path | str) -> bool:
    """Whether ``path`` is a folder, which only an exported checkpoint can be."""
    return Path(path).is_dir()


class ExportedFolder:
    """An open folder. The manifest is read at once, files on request.

    Example:
        >>> folder = ExportedFolder.open("exported")
        >>> [task.name for task in folder.manifest.header.tasks]
        ['bolt', 'nut', 'gear']
        >>> folder.verify()  # reads every file; raises CheckpointDigestError if one is damaged
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path, self.manifest = path, manifest
        self.info = CheckpointInfo(as_text(path.resolve().name), digest)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read the manifest, and check that every file is there in its length.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError, CheckpointVersionError: each says what to do.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointNotFoundError(
                f"there is no folder {str(path)!r}; make one with `moleflow export CHECKPOINT {path}`."
            )
        try:
            with (path / MANIFEST).open("rb") as file:
                document = file.read(_LONGEST_MANIFEST + 1)
        except OSError as error:
            raise CheckpointFormatError(
                f"{str(path)!r} is not an exported folder: its {MANIFEST} cannot be read "
                f"({error.strerror or error}); name a checkpoint's file, or a folder that `moleflow export` wrote."
            ) from error
        opened = cls(path, _parse(path, document), hashlib.sha256(document).hexdigest())
        opened._check_lengths()
        return opened

    def read(self, name: str) -> bytes:
        """The bytes of a file, verified.

        Raises:
            CheckpointDigestError: they do not match their digest.
            CheckpointFormatError: the file cannot be read.
        """
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise self._incomplete(name, error.strerror or str(error)) from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise CheckpointDigestError(
                f"file {name!r} of {str(self.path)!r} differs from what was written: it is damaged or was changed; "
                f"restore the folder from a copy, or {_AGAIN}."
            )
        return data

    def graph(self, name: str) -> list[bytes]:
        """The files of a graph: its description, and in OpenVINO's form its weights. Errors as ``read``."""
        return [self.read(file) for file in manifests.graph_files(name, self.manifest.graphs)]

    def calibrations(self) -> list[TaskCalibration]:
        """The calibrations of the products, in their order. Errors as ``read``."""
        data = self.read(manifests.CALIBRATIONS)
        try:
            arrays = safetensors.numpy.load(data)
            return [
                TaskCalibration.fit(
                    {key: arrays[f"{task.index}.{key}"] for key in TaskCalibration.__dataclass_fields__}
                )
                for task in self.manifest.header.tasks
            ]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise CheckpointFormatError(
                f"{manifests.CALIBRATIONS!r} of {str(self.path)!r} does not calibrate every product "
                f"({one_line(error)}); {_AGAIN}."
            ) from error

    def verify(self) -> None:
        """Verify the digest of every file."""
        for name in self.manifest.files:
            self.read(name)

    def _check_lengths(self) -> None:
        for name, entry in self.manifest.files.items():
            try:
                size = (self.path / name).stat().st_size
            except OSError as error:
                raise self._incomplete(name, error.strerror or str(error)) from error
            if size != entry.bytes:
                raise self._incomplete(name, f"it has {size:,} of {entry.bytes:,} bytes")

    def _incomplete(self, name: str, problem: str) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"file {name!r} of the exported folder {str(self.path)!r} cannot be used ({problem}); copy the whole "
            f"folder again, or {_AGAIN}."
        )


def _parse(path: Path, document: bytes) -> Manifest:
    try:
        return parse_manifest(document.decode())
    except (manifests.UnknownVersionError, headers.UnknownVersionError) as error:
        raise CheckpointVersionError(
            f"the exported folder {str(path)!r} has {error}; use the MoLE-Flow version that wrote it, or {_AGAIN}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(
            f"the {MANIFEST} of {str(path)!r} is broken ({one_line(error)}); {_AGAIN}."
        ) from error
