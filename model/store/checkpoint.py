"""The checkpoint: one safetensors file with everything that prediction needs, and no pickle.

The file's metadata hold one JSON document, the :class:`Header`: format version, full configuration, resolved
preprocessing, and the learned tasks in order, with a SHA-256 per section. Sections group tensors by the prefix of
their names: ``backbone.…``, ``base.…``, and per task ``tasks.INDEX.profile.…``, which is small and loaded for every
product (router and calibration), and ``tasks.INDEX.expert.…``, which is large and loaded only for images of that
product. Sections are read and verified one by one, so a program that needs one expert does not read the others. If
every task has its own base (``FlowConfig.sharing``), it is part of the task's expert section and ``base`` is empty.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch

from moleflow.model.errors import (
    CheckpointDigestError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    one_line,
)
from moleflow.model.features.backbone import Backbone, stage_channels
from moleflow.model.files.atomic import atomic_write
from moleflow.model.files.file_names import as_text
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.routing.router import Prototype
from moleflow.model.runtime.soundness import fault_of
from moleflow.model.store.header import FORMAT_VERSION, READABLE_VERSIONS, Header, UnknownVersionError, parse_header
from moleflow.model.store.layout import (
    HELD_OUT,
    INSPECTED,
    Layout,
    backbone_layout,
    base_layout,
    differences,
    expert_layout,
    profile_layout,
    scoring_layout,
)
from moleflow.model.store.sections import digest_tensors
from moleflow.model.store.tensor_file import StoredSection, TensorFile, Tensors, write_tensor_file
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.results import CheckpointInfo

__all__ = ["FORMAT_VERSION", "Checkpoint", "Header", "Tensors", "write_checkpoint"]

_METADATA_KEY = "moleflow"


class Profile(NamedTuple):
    """What prediction needs of every product, whichever the image shows."""

    prototype: Prototype
    calibration: TaskCalibration


class Checkpoint:
    """An open checkpoint. The header is read at once, tensors on request.

    It keeps reading the file that was opened, even after a newer one has replaced it at the same path.

    Example:
        >>> checkpoint = Checkpoint.open("factory.safetensors")
        >>> [task.name for task in checkpoint.header.tasks]
        ['bolt', 'nut', 'gear']
        >>> checkpoint.header.config.flow.coupling_blocks
        2
        >>> checkpoint.verify()  # reads every section; raises CheckpointDigestError if one is damaged
    """

    def __init__(self, file: TensorFile, header: Header, digest: str) -> None:
        self.path, self.header = file.path, header
        self.info = CheckpointInfo(as_text(file.path.name), digest)
        self._file, self._digests = file, header.digests()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read and check the header.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError, CheckpointVersionError: each says what to do.
        """
        path = Path(path)
        if path.exists() and not path.is_file():
            kind = "folder" if path.is_dir() else "FIFO or a device"
            raise CheckpointFormatError(
                f"{str(path)!r} is a {kind}; name the checkpoint's file. (`moleflow serve`, `predict` and `inspect` "
                "also take a folder that `moleflow export` wrote.)"
            )
        if not path.exists():
            raise CheckpointNotFoundError(
                f"there is no checkpoint {str(path)!r}; train one with "
                f"`moleflow train DATA --task NAME --checkpoint {path}`."
            )
        file = TensorFile.open(path)
        document = file.metadata.get(_METADATA_KEY)
        if document is None:
            raise CheckpointFormatError(
                f"{str(path)!r} is a safetensors file but not a MoLE-Flow checkpoint; give one that `moleflow train` "
                "wrote."
            )
        opened = cls(file, _parse_header(path, document), hashlib.sha256(document.encode()).hexdigest())
        opened._check_sections()
        return opened

    def _check_sections(self) -> None:
        """Check that the file has exactly the tensors that its header implies.

        Those of the backbone are checked when it is loaded: a plugin may have to be imported first.
        """
        header, file = self.header, self._file
        unknown = next((name for name in file.sections() if name not in self._digests), None)
        if unknown is not None:
            raise self._unfit(unknown, "its header knows no such section")
        self._check_layout("base", base_layout(header.config))
        checked = set()
        for task in header.tasks:
            section, first = f"tasks.{task.index}.expert", header.config.flow.starts_base(task.index)
            # A thousand experts share a few layouts.
            if (id(file.layout(section)), first) not in checked:
                scoring = scoring_layout(header.config.scoring, file.layout(section))
                self._check_layout(section, {**expert_layout(header.config, first=first), **scoring})
                checked.add((id(file.layout(section)), first))
            section = f"tasks.{task.index}.profile"
            self._check_layout(section, profile_layout(header.config, task, file.layout(section)))

    def _check_layout(self, section: str, wanted: Layout) -> None:
        problem = next(differences(self._file.layout(section), wanted), None)
        if problem is not None:
            raise self._unfit(section, problem)

    def _unfit(self, section: str, problem: str) -> CheckpointFormatError:
        return CheckpointFormatError(self._about(section, f"does not fit its configuration: {problem}"))

    def _about(self, section: str, problem: str) -> str:
        where = f"section {one_line(section)!r} of {str(self.path)!r}"
        return f"{where} {problem}; restore the file from a copy, or train again."

    def section(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a section (see ``Header.digests``), without its prefix, verified.

        Raises:
            CheckpointDigestError: the tensors do not match their digest.
            CheckpointFormatError: they cannot be read, or have unusable values (``moleflow.model.runtime.soundness``).
        """
        tensors = self._file.section(name)
        if digest_tensors(tensors) != self._digests[name]:
            problem = "differs from what was written: the file is damaged or was changed"
            raise CheckpointDigestError(self._about(name, problem))
        fault = fault_of(tensors)
        if fault is not None:
            raise CheckpointFormatError(self._about(name, f"cannot be used: {fault}"))
        return tensors

    def stored(self, name: str) -> StoredSection:
        """A section for ``write_checkpoint``, which copies it from this file without loading it."""
        return StoredSection(self._file, name)

    def section_bytes(self) -> dict[str, int]:
        """Bytes of tensor data in each section, by its name; reads no tensor."""
        return {section: size for section, (_, size) in self._file.sizes().items()}

    def section_parameters(self) -> dict[str, int]:
        """Number of tensor elements in each section, by its name; reads no tensor."""
        return {section: count for section, (count, _) in self._file.sizes().items()}

    def backbone(self) -> Backbone:
        self._check_layout("backbone", backbone_layout(self.header.config.backbone))
        backbone = Backbone.empty(self.header.config.backbone, self.header.preprocessing)
        self._load(backbone.net, self.section("backbone"), "backbone")
        return backbone

    def base(self, task: int = 0) -> Base:
        """The base of the task at index ``task``: the shared one, or its own if bases are separate."""
        base = Base(self.header.config)
        if self.header.config.flow.sharing == "separated":
            self._load(base, _part(self.section(f"tasks.{task}.expert"), "base"), f"tasks.{task}.expert.base")
        else:
            self._load(base, self.section("base"), "base")
        return base.requires_grad_(False)

    def profile(self, index: int) -> Profile:
        """Prototype and calibration of the task at ``index``."""
        section = f"tasks.{index}.profile"
        tensors = self.section(section)
        described = _part(tensors, "prototype")
        prototype = Prototype(
            self.header.config.backbone.embedding_dim, described["axes"].shape[1], described["spread"].shape[1]
        )
        self._load(prototype, described, f"{section}.prototype")
        return Profile(prototype, self._calibration(tensors, index))

    def product(self, index: int) -> ProductParts:
        """What scores the task at ``index``: its expert, and memory and fusion if the scoring has them."""
        section, config = f"tasks.{index}.expert", self.header.config
        tensors = self.section(section)
        expert = Expert(config, first=config.flow.starts_base(index))
        # A separate base is loaded by ``base``.
        others = ("base.", "memory.", "fusion.")
        self._load(expert, {k: v for k, v in tensors.items() if not k.startswith(others)}, section)
        expert.requires_grad_(False)
        if config.scoring.cap is None:
            return ProductParts(expert)
        stored, bank, kinds = _part(tensors, "memory"), None, 1
        if config.scoring.memory is not None:
            sizes = stored["axes"].shape[1], len(stored["prototypes"]), len(stored["pooled"])
            bank, kinds = MemoryBank(sum(stage_channels(config.backbone)), *sizes), 2 if sizes[-1] else 1
            self._load(bank, stored, f"{section}.memory")
        fusion = Fusion(config.scoring, config.backbone.embedding_dim, kinds)
        self._load(fusion, _part(tensors, "fusion"), f"{section}.fusion")
        return ProductParts(expert, bank, fusion)

    def _calibration(self, tensors: Tensors, index: int) -> TaskCalibration:
        try:
            held_out = _part(tensors, HELD_OUT) | _part(tensors, INSPECTED)
            return TaskCalibration.fit({key: value.tolist() for key, value in held_out.items()})
        except ValueError as error:
            problem = f"does not calibrate: {one_line(error)}"
            raise CheckpointFormatError(self._about(f"tasks.{index}.profile", problem)) from error

    def verify(self) -> None:
        """Verify the digest of every section."""
        for name in self._digests:
            self.section(name)

    def _load(self, module: torch.nn.Module, tensors: Tensors, section: str) -> None:
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise self._unfit(section, one_line(error)) from error


def _parse_header(path: Path, document: str) -> Header:
    try:
        return parse_header(document)
    except UnknownVersionError as error:
        raise CheckpointVersionError(
            f"{str(path)!r} has {error}; this program reads versions {' and '.join(map(str, READABLE_VERSIONS))}. "
            "Use the MoLE-Flow version that wrote it, or train again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(
            f"the header of {str(path)!r} is broken ({one_line(error)}); train again."
        ) from error


def _part(tensors: Tensors, name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def write_checkpoint(path: Path, header: Header, sections: Mapping[str, Tensors | StoredSection]) -> None:
    """Write a checkpoint atomically: to a temporary file, synced, then renamed.

    ``sections`` has every one that ``header.digests()`` names; those of an older file are copied without being
    verified.

    Raises:
        CheckpointError: the file cannot be written, or a new section has unusable values; an older file is left alone.
    """
    ordered = {name: sections[name] for name in header.digests()}
    for name, part in ordered.items():
        fault = None if isinstance(part, StoredSection) else fault_of(part)
        if fault is not None:
            raise CheckpointError(f"checkpoint {str(path)!r} was not written: in section {name!r} {fault}.")
    try:
        with atomic_write(path) as temporary:
            write_tensor_file(temporary, {_METADATA_KEY: header.document()}, ordered)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be written ({one_line(error)}); make room, or choose another location."
        ) from error
