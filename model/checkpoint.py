"""The checkpoint: one safetensors file that holds everything that prediction needs, and no pickle.

The file's metadata carry one JSON document, the :class:`Header`: format version, full configuration, resolved
preprocessing, and the learned tasks in order, with a SHA-256 for every section. Sections are groups of tensors by
the first parts of their names: ``backbone.…``, ``base.…`` and ``tasks.INDEX.…``. Sections are read, and their
digests checked, one by one, so a program that needs one expert does not read the others. Where every task has a whole
base of its own (``FlowConfig.sharing``), it lies in the task's section and ``base`` is empty.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.atomic import atomic_write
from model.backbone import Backbone
from model.calibration import TaskCalibration
from model.config import ModelConfig
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

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "Header",
    "LearnedTask",
    "Tensors",
    "digest_tensors",
    "task_tensors",
    "write_checkpoint",
]

FORMAT_VERSION = 2
"""Raised whenever an older program could not read the file rightly, or this one an older file."""

_METADATA_KEY = "moleflow"

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "I32": 32, "I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64}
"""Widths of the element types, by their names in the safetensors format."""

Tensors = Mapping[str, torch.Tensor]


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


class LearnedTask(NamedTuple):
    """What a checkpoint holds of one product."""

    expert: Expert
    prototype: Prototype
    calibration: TaskCalibration


class Checkpoint:
    """An opened checkpoint: its header at once, its tensors when asked for (memory-mapped)."""

    def __init__(self, path: Path, header: Header, digest: str) -> None:
        self.path, self.header = path, header
        self.info = CheckpointInfo(path.name, digest)

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
        try:
            with safe_open(path, framework="pt") as file:
                document = (file.metadata() or {}).get(_METADATA_KEY)
        except (SafetensorError, OSError) as error:
            raise CheckpointFormatError(
                f"{str(path)!r} is no whole safetensors file ({error}); it may be truncated: copy or train it again."
            ) from error
        if document is None:
            raise CheckpointFormatError(
                f"{str(path)!r} is a safetensors file but no MoLE-Flow checkpoint; give one that `moleflow train` "
                "wrote."
            )
        return cls(path, _parse_header(path, document), hashlib.sha256(document.encode()).hexdigest())

    def section(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a section (``backbone``, ``base`` or ``tasks.INDEX``), without its prefix, checked.

        Raises:
            CheckpointDigestError: the tensors are not those that were written.
        """
        prefix = f"{name}."
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointFormatError(f"{str(self.path)!r} cannot be read ({error}).") from error
        if digest_tensors(tensors) != self._expected_digest(name):
            raise CheckpointDigestError(
                f"section {name!r} of {str(self.path)!r} differs from what was written: the file is damaged or was "
                "changed; restore it from a copy, or train again."
            )
        return tensors

    def section_bytes(self) -> dict[str, int]:
        """Bytes of tensor data in each section, by the section's name; reads no tensor."""
        return {section: size for section, (_, size) in self._sizes().items()}

    def section_parameters(self) -> dict[str, int]:
        """Numbers in each section, by the section's name; reads no tensor."""
        return {section: count for section, (count, _) in self._sizes().items()}

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """How many numbers each section has, and in how many bytes; an empty section is left out."""
        sizes: dict[str, tuple[int, int]] = {}
        with safe_open(self.path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping, in spite of the name
                section = ".".join(key.split(".")[: 2 if key.startswith("tasks.") else 1])
                part = file.get_slice(key)
                count = math.prod(part.get_shape())
                numbers, size = sizes.get(section, (0, 0))
                sizes[section] = numbers + count, size + count * _BITS[part.get_dtype()] // 8
        return sizes

    def backbone(self) -> Backbone:
        """The frozen backbone with its weights."""
        backbone = Backbone.empty(self.header.config.backbone, self.header.preprocessing)
        self._load(backbone.net, self.section("backbone"), "backbone")
        return backbone

    def base(self, task: int = 0) -> Base:
        """The base that the task at index ``task`` stands on: the shared one, or where bases are separate its own."""
        base = Base(self.header.config)
        if self.header.config.flow.sharing == "separated":
            self._load(base, _part(self.section(f"tasks.{task}"), "base"), f"tasks.{task}.base")
        else:
            self._load(base, self.section("base"), "base")
        return base.requires_grad_(False)

    def task(self, index: int) -> LearnedTask:
        """Expert, prototype and calibration of the task at ``index``."""
        tensors = self.section(f"tasks.{index}")
        expert = Expert(self.header.config, first=self.header.config.flow.starts_base(index))
        self._load(expert, _part(tensors, "expert"), f"tasks.{index}.expert")
        described = _part(tensors, "prototype")
        # A prototype's rank is its own; whatever is not as it should be is found by loading.
        rank = described["axes"].shape[-1] if "axes" in described and described["axes"].ndim else 0
        prototype = Prototype(self.header.config.backbone.embedding_dim, rank)
        self._load(prototype, described, f"tasks.{index}.prototype")
        return LearnedTask(expert.requires_grad_(False), prototype, self._calibration(tensors, index))

    def _calibration(self, tensors: Tensors, index: int) -> TaskCalibration:
        try:
            return TaskCalibration.fit({key: value.tolist() for key, value in _part(tensors, "held_out").items()})
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointFormatError(
                f"section 'tasks.{index}.held_out' of {str(self.path)!r} does not calibrate: {one_line(error)}; train "
                "the product again."
            ) from error

    def verify(self) -> None:
        """Check the digest of every section."""
        for name in ("backbone", "base", *(f"tasks.{task.index}" for task in self.header.tasks)):
            self.section(name)

    def _expected_digest(self, section: str) -> str:
        if section == "backbone":
            return self.header.backbone_sha256
        if section == "base":
            return self.header.base_sha256
        return self.header.tasks[int(section.removeprefix("tasks."))].sha256

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
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise CheckpointFormatError(
            f"the header of {str(path)!r} is broken ({one_line(error)}); train again."
        ) from error


def _part(tensors: Tensors, name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def task_tensors(expert: Expert, prototype: Prototype, held_out: Tensors) -> dict[str, torch.Tensor]:
    """A task's section: expert, prototype, and what its held-out good pictures came to.

    ``held_out`` has one vector for each field of ``TaskCalibration``; they are sorted, so that they tell of no picture.
    """
    parts = {"expert": expert.state_dict(), "prototype": prototype.state_dict()}
    tensors = {f"{part}.{key}": value.detach().cpu() for part, state in parts.items() for key, value in state.items()}
    return tensors | {f"held_out.{key}": value.detach().float().cpu().sort().values for key, value in held_out.items()}


def digest_tensors(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(path: Path, header: Header, backbone: Tensors, base: Tensors, tasks: Iterable[Tensors]) -> None:
    """Write a whole checkpoint atomically: to a temporary file, synced, then renamed.

    Raises:
        CheckpointError: the file cannot be written, as on a full disk; an older one stays as it was.
    """
    sections: dict[str, Tensors] = {"backbone": backbone, "base": base}
    sections |= {f"tasks.{index}": tensors for index, tensors in enumerate(tasks)}
    flat = {f"{name}.{key}": value.contiguous() for name, part in sections.items() for key, value in part.items()}
    try:
        with atomic_write(path) as temporary:
            save_file(flat, temporary, metadata={_METADATA_KEY: header.model_dump_json()})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be written ({one_line(error)}); make room or give it another place."
        ) from error
