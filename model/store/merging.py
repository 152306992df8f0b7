"""Checkpoints with the same base become one: experts are independent, so products learned apart are pooled.

Sections are copied from file to file, byte for byte and in pieces, so memory does not grow with them.
"""

import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from moleflow.model.errors import CheckpointError, ConfigurationError, TaskError
from moleflow.model.files.exclusive import exclusive, side_file
from moleflow.model.store.checkpoint import Checkpoint, Header, Tensors, write_checkpoint
from moleflow.model.store.tensor_file import StoredSection
from moleflow.model.verdict.records import TaskInfo

__all__ = ["Merged", "StoredProduct", "allow_open_files", "merge_checkpoints", "write_products"]

_MOST_LISTED = 10
"""Clashes that a message lists; the others are counted."""

_OTHER_FILES = 100
"""Files that a process has open beside those that it asks for: libraries, pipes, the output."""


class StoredProduct(NamedTuple):
    """A product in a file: its record, and where its two sections are."""

    info: TaskInfo
    profile: StoredSection
    expert: StoredSection

    @classmethod
    def all_of(cls, checkpoint: Checkpoint) -> Iterator[Self]:
        """The products of a checkpoint, in order."""
        for task in checkpoint.header.tasks:
            parts = (checkpoint.stored(f"tasks.{task.index}.{part}") for part in ("profile", "expert"))
            yield cls(task, *parts)


@dataclass(slots=True)
class Merged:
    """What ``merge_checkpoints`` wrote.

    ``shared`` products were in several files. Of those that are ``recalibrated``, the files have other thresholds or
    another inspected area; the first file's are kept.
    """

    checkpoint: Checkpoint
    shared: list[str] = field(default_factory=list)
    recalibrated: list[str] = field(default_factory=list)


def merge_checkpoints(paths: Sequence[Path], output: Path) -> Merged:
    """Write the products of all checkpoints at ``paths``, in that order, to ``output``, in one atomic step.

    A product that several files have with the same contents is written once, as the first of them records it.
    ``output`` may be one of ``paths``, but no other file.

    Raises:
        ConfigurationError: fewer than two files, ``output`` is another file, or another process writes it.
        TaskError: two different products have one name, or one product has two names; all are listed.
        CheckpointError: a file cannot be read or written, or was learned on another base or backbone.
    """
    if len(paths) < 2:
        raise ConfigurationError(f"merging takes two checkpoints or more; got {len(paths)}.")
    allow_open_files(len(paths))
    opened = [Checkpoint.open(path) for path in paths]
    if output.exists() and not any(output.samefile(path) for path in paths):
        raise ConfigurationError(
            f"{str(output)!r} exists and is none of the files to merge; name it among them to keep its products, or "
            "choose another output."
        )
    with exclusive(output):
        for other in opened[1:]:
            _check_same_base(opened[0], other)
        pool = _Pool(opened[0].header)
        for checkpoint in opened:
            pool.add(checkpoint)
        if pool.clashes:
            more = len(pool.clashes) - _MOST_LISTED
            listed = "; ".join(pool.clashes[:_MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
            raise TaskError(
                f"nothing was merged, because products clash: {listed}. Rename or remove one of each pair "
                "(`moleflow rename`, `moleflow remove`)."
            )
        merged = write_products(side_file(output, ""), opened[0], list(pool.products.values()))
    return Merged(merged, pool.shared, pool.recalibrated)


class _Pool:
    """Products by name, and what stands in their way."""

    def __init__(self, header: Header) -> None:
        self.products: dict[str, StoredProduct] = {}
        self.clashes: list[str] = []
        self.shared: list[str] = []
        self.recalibrated: list[str] = []
        self._names: dict[tuple[str, str], str] = {}
        self._flow = header.config.flow

    def add(self, checkpoint: Checkpoint) -> None:
        for product in StoredProduct.all_of(checkpoint):
            info, where = product.info, checkpoint.info.name
            content = info.profile_sha256, info.sha256
            known, same = self.products.get(info.name), self._names.get(content)
            if same is not None and same != info.name:
                self.clashes.append(f"{info.name!r} of {where} is {same!r} of another file")
            elif same is not None and known is not None and known.info.area == info.area:
                self.shared.append(info.name)
            elif same is not None or self._is_first(known, info):
                self.recalibrated.append(info.name)
            elif known is not None:
                self.clashes.append(f"{info.name!r} of {where} differs from the product of that name in another file")
            elif self.products and self._flow.starts_base(info.index) and self._flow.sharing != "separated":
                self.clashes.append(f"{info.name!r} of {where} was learned first there, with the base, and not here")
            else:
                self.products[info.name] = product
                self._names[content] = info.name

    def _is_first(self, known: StoredProduct | None, info: TaskInfo) -> bool:
        """Whether it is the product that the base was learned with, recalibrated in one of two files.

        It cannot be removed from either, so that would be no clash that anybody could solve.
        """
        return known is not None and known.info.index == info.index == 0 and known.info.sha256 == info.sha256


def _check_same_base(one: Checkpoint, other: Checkpoint) -> None:
    """``CheckpointError`` unless the experts of ``other`` work with the backbone and the base of ``one``."""
    mine, theirs = one.header, other.header
    same = {
        f"base (digests {mine.base_sha256[:12]} and {theirs.base_sha256[:12]})": mine.base_sha256 == theirs.base_sha256,
        "backbone": mine.backbone_sha256 == theirs.backbone_sha256,
        "configuration": mine.config == theirs.config,
        "preprocessing": mine.preprocessing == theirs.preprocessing,
    }
    for what, is_same in same.items():
        if not is_same:
            raise CheckpointError(
                f"{str(one.path)!r} and {str(other.path)!r} have another {what}, so their experts cannot be pooled; "
                "learn the products of one of them again, starting from a copy of the other."
            )


def write_products(path: Path, kept: Checkpoint, products: Sequence[StoredProduct]) -> Checkpoint:
    """Write a checkpoint of ``products``, numbered in this order, and open it; the caller has locked the file.

    Backbone, base and the rest of the header are those of ``kept``. Nothing is verified: reading a section does that.

    Raises:
        CheckpointError: the file cannot be written, or would have more tensors than the format allows; an older one is
            left alone.
    """
    sections: dict[str, Tensors | StoredSection] = {name: kept.stored(name) for name in ("backbone", "base")}
    for index, product in enumerate(products):
        sections[f"tasks.{index}.profile"], sections[f"tasks.{index}.expert"] = product.profile, product.expert
    header = kept.header.model_copy(update={"tasks": tuple(_renumbered(products))})
    write_checkpoint(path, Header.model_validate(header.model_dump()), sections)
    return Checkpoint.open(path)


def _renumbered(products: Iterable[StoredProduct]) -> Iterator[TaskInfo]:
    for index, product in enumerate(products):
        yield product.info.model_copy(update={"index": index})


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files so that ``count`` more can be opened.

    Raises:
        ConfigurationError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigurationError(
            f"{count:,} files would have to be open at once, and this system allows {hard:,}; raise the limit "
            f"(ulimit -n), or merge in groups of at most {max(hard - _OTHER_FILES, 0):,}."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
