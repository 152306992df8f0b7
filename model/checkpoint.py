"""The checkpoint: one safetensors file that holds everything that prediction needs, and no pickle.

The file's metadata carry one JSON document, the :class:`Header`: format version, full configuration, resolved
preprocessing, and the learned tasks in order, with a SHA-256 for every section. Sections are groups of tensors by
the first parts of their names: ``backbone.…``, ``base.…``, and for each task ``tasks.INDEX.profile.…``, the little
that the router and the verdicts need of every product, and ``tasks.INDEX.expert.…``, which is large and wanted only for
pictures of that product. Sections are read, and their digests checked, one by one, so a program that needs one expert
does not read the others. Where every task has a whole base of its own (``FlowConfig.sharing``), it lies with the task's
expert and ``base`` is empty.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.atomic import atomic_write
from model.backbone import Backbone
from model.calibration import TaskCalibration
from model.config import ExpertDtype, ModelConfig
from model.errors import (
    CheckpointDigestError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    UnknownTaskError,
    one_line,
)
from model.network import Base, Expert
from model.preprocessing import Preprocessing
from model.results import CheckpointInfo, TaskInfo
from model.router import Prototype
from model.tensor_file import StoredSection, TensorFile, Tensors, write_tensor_file

__all__ = [
    "FORMAT_VERSION",
    "STORED_TYPES",
    "Checkpoint",
    "Header",
    "Profile",
    "Tensors",
    "digest_tensors",
    "expert_tensors",
    "profile_tensors",
    "write_checkpoint",
]

FORMAT_VERSION = 4
"""Raised whenever an older program could not read the file rightly, or this one an older file."""

STORED_TYPES: dict[ExpertDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_METADATA_KEY = "moleflow"

_OWN_RANKS = ("axes", "spread")
"""Tensors of a prototype whose last dimension is as long as its pictures allow."""


class Header(BaseModel):
    """What a checkpoint says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    preset: str = Field(
        description="the training preset that the first task was learned with; later ones default to it"
    )
    config: ModelConfig
    preprocessing: Preprocessing
    backbone_sha256: str
    base_sha256: str
    tasks: tuple[TaskInfo, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [task.name for task in self.tasks]
        if [task.index for task in self.tasks] != list(range(len(names))) or len(set(names)) != len(names):
            raise ValueError(f"tasks must be numbered in order and named once each; got {names}")
        return self

    def task(self, name: str) -> TaskInfo:
        """The record of the task called ``name``; raises ``UnknownTaskError``."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UnknownTaskError(name, tuple(task.name for task in self.tasks))

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each section, in their order in the file."""
        found = {"backbone": self.backbone_sha256, "base": self.base_sha256}
        for task in self.tasks:
            found[f"tasks.{task.index}.profile"] = task.profile_sha256
            found[f"tasks.{task.index}.expert"] = task.sha256
        return found


class Profile(NamedTuple):
    """What a program needs of every product before it sees a picture of any."""

    prototype: Prototype
    calibration: TaskCalibration


class Checkpoint:
    """An opened checkpoint: its header at once, its tensors when asked for.

    It goes on reading the file that was opened, also when a newer one is written to the same path.
    """

    def __init__(self, file: TensorFile, header: Header, digest: str) -> None:
        self.path, self.header = file.path, header
        self.info = CheckpointInfo(file.path.name, digest)
        self._file, self._digests = file, header.digests()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read and check the header.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError, CheckpointVersionError: each says what to do.
        """
        path = Path(path)
        if path.is_dir():
            raise CheckpointFormatError(f"{str(path)!r} is a folder; name the checkpoint's file inside it.")
        if not path.is_file():
            raise CheckpointNotFoundError(
                f"there is no checkpoint {str(path)!r}; train one with "
                f"`moleflow train DATA --task NAME --checkpoint {path}`."
            )
        file = TensorFile.open(path)
        document = file.metadata.get(_METADATA_KEY)
        if document is None:
            raise CheckpointFormatError(
                f"{str(path)!r} is a safetensors file but no MoLE-Flow checkpoint; give one that `moleflow train` "
                "wrote."
            )
        return cls(file, _parse_header(path, document), hashlib.sha256(document.encode()).hexdigest())

    def section(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a section (see ``Header.digests``), without its prefix, checked.

        Raises:
            CheckpointDigestError: the tensors are not those that were written.
        """
        tensors = self._file.section(name)
        if digest_tensors(tensors) != self._digests[name]:
            raise CheckpointDigestError(
                f"section {name!r} of {str(self.path)!r} differs from what was written: the file is damaged or was "
                "changed; restore it from a copy, or train again."
            )
        return tensors

    def stored(self, name: str) -> StoredSection:
        """A section that ``write_checkpoint`` copies from this file as it is, without reading it into memory."""
        return StoredSection(self._file, name)

    def section_bytes(self) -> dict[str, int]:
        """Bytes of tensor data in each section, by the section's name; reads no tensor."""
        return {section: size for section, (_, size) in self._file.sizes().items()}

    def section_parameters(self) -> dict[str, int]:
        """Numbers in each section, by the section's name; reads no tensor."""
        return {section: count for section, (count, _) in self._file.sizes().items()}

    def backbone(self) -> Backbone:
        """The frozen backbone with its weights."""
        backbone = Backbone.empty(self.header.config.backbone, self.header.preprocessing)
        self._load(backbone.net, self.section("backbone"), "backbone")
        return backbone

    def base(self, task: int = 0) -> Base:
        """The base that the task at index ``task`` stands on: the shared one, or where bases are separate its own."""
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
        # A prototype's rank is its own; whatever is not as it should be is found by loading.
        ranks = [described[key].shape[-1] if key in described and described[key].ndim else 0 for key in _OWN_RANKS]
        prototype = Prototype(self.header.config.backbone.embedding_dim, *ranks)
        self._load(prototype, described, f"{section}.prototype")
        return Profile(prototype, self._calibration(tensors, index))

    def expert(self, index: int) -> Expert:
        """Expert of the task at ``index``."""
        section = f"tasks.{index}.expert"
        tensors = self.section(section)
        expert = Expert(self.header.config, first=self.header.config.flow.starts_base(index))
        # A base of its own, where there is one, is ``base``'s to load.
        self._load(expert, {k: v for k, v in tensors.items() if not k.startswith("base.")}, section)
        return expert.requires_grad_(False)

    def _calibration(self, tensors: Tensors, index: int) -> TaskCalibration:
        try:
            return TaskCalibration.fit({key: value.tolist() for key, value in _part(tensors, "held_out").items()})
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointFormatError(
                f"section 'tasks.{index}.profile' of {str(self.path)!r} does not calibrate: {one_line(error)}; train "
                "the product again."
            ) from error

    def verify(self) -> None:
        """Check the digest of every section."""
        for name in self._digests:
            self.section(name)

    def _load(self, module: torch.nn.Module, tensors: Tensors, section: str) -> None:
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointFormatError(
                f"section {section!r} of {str(self.path)!r} does not fit its configuration: {one_line(error)}"
            ) from error


def _parse_header(path: Path, document: str) -> Header:
    try:
        version = json.loads(document)["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointVersionError(
                f"{str(path)!r} has format version {version!r}; this program reads version {FORMAT_VERSION}. "
                "Use the MoLE-Flow version that wrote it, or train again."
            )
        return Header.model_validate_json(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointFormatError(
            f"the header of {str(path)!r} is broken ({one_line(error)}); train again."
        ) from error


def _part(tensors: Tensors, name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def profile_tensors(prototype: Prototype, held_out: Tensors) -> dict[str, torch.Tensor]:
    """A task's profile section: prototype, and what its held-out good pictures came to.

    ``held_out`` has one vector for each field of ``TaskCalibration``; they are sorted, so that they tell of no picture.
    """
    tensors = {f"prototype.{key}": value.detach().cpu() for key, value in prototype.state_dict().items()}
    return tensors | {f"held_out.{key}": value.detach().float().cpu().sort().values for key, value in held_out.items()}


def expert_tensors(expert: Expert, dtype: ExpertDtype = "float32", base: Base | None = None) -> dict[str, torch.Tensor]:
    """A task's expert section, what is learned in it as ``dtype``, with the ``base`` where it has one of its own."""
    learned = {key for key, _ in expert.named_parameters()}
    tensors = {
        key: value.detach().cpu().to(STORED_TYPES[dtype] if key in learned else value.dtype)
        for key, value in expert.state_dict().items()
    }
    own = {} if base is None else base.state_dict()
    return tensors | {f"base.{key}": value.detach().cpu() for key, value in own.items()}


def digest_tensors(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(path: Path, header: Header, sections: Mapping[str, Tensors | StoredSection]) -> None:
    """Write a whole checkpoint atomically: to a temporary file, synced, then renamed.

    ``sections`` has every one that ``header.digests()`` names; those of an older file are copied as they are, and what
    is damaged in them stays so until it is read.

    Raises:
        CheckpointError: the file cannot be written, as on a full disk; an older one stays as it was.
    """
    ordered = {name: sections[name] for name in header.digests()}
    try:
        with atomic_write(path) as temporary:
            write_tensor_file(temporary, {_METADATA_KEY: header.model_dump_json()}, ordered)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be written ({one_line(error)}); make room or give it another place."
        ) from error
