"""Products leave a checkpoint, are hidden in it, or get another name, without touching any other product.

The sections of all that stay are copied byte for byte. The file is replaced in one atomic step, by one writer at a
time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from moleflow.model.errors import TaskError
from moleflow.model.files.exclusive import exclusive
from moleflow.model.names import find_named, product_name, same_name
from moleflow.model.store.checkpoint import Checkpoint, Header, Tensors, write_checkpoint
from moleflow.model.store.tensor_file import StoredSection
from moleflow.model.verdict.records import TaskInfo

__all__ = ["change_product", "hide_products", "remove_products", "rename_product", "rewrite"]


def remove_products(path: Path, names: Sequence[str]) -> Checkpoint:
    """Remove products; the checkpoint without them.

    Raises:
        UnknownTaskError: no product has one of the names.
        TaskError: no product would be left, or one is the first, with which the base of the others was learned.
        ConfigurationError, CheckpointError: another process writes, or the file cannot be read or written.
    """

    def without(header: Header) -> list[TaskInfo]:
        gone = {find_named(name, header.tasks).index for name in names}
        if 0 in gone and header.config.flow.sharing != "separated":
            first = header.tasks[0].name
            raise TaskError(
                f"product {first!r} was learned first, and with it the base that all others need, so it cannot be "
                "removed; hide it instead (`moleflow remove --hide`, `?hide=true`): its base stays, and it takes no "
                "part in prediction."
            )
        return [task for task in header.tasks if task.index not in gone]

    return _change(path, without)


def hide_products(path: Path, names: Sequence[str], *, hidden: bool = True) -> Checkpoint:
    """Hide products, or show hidden ones again; the changed checkpoint.

    Raises:
        UnknownTaskError, ConfigurationError, CheckpointError: as ``remove_products``.
        TaskError: every product would be hidden.
    """

    def marked(header: Header) -> list[TaskInfo]:
        chosen = {find_named(name, header.tasks).index for name in names}
        return [task.model_copy(update={"hidden": hidden}) if task.index in chosen else task for task in header.tasks]

    return _change(path, marked)


def rename_product(path: Path, old: str, new: str) -> Checkpoint:
    """Give a product another name; the changed checkpoint. Raises as ``change_product``."""
    return change_product(path, old, new_name=new)


def change_product(path: Path, name: str, *, new_name: str | None = None, hidden: bool | None = None) -> Checkpoint:
    """Rename a product, hide it or show it again, in one step; the changed checkpoint. ``None`` changes nothing.

    Raises:
        UnknownTaskError, ConfigurationError, CheckpointError: as ``remove_products``.
        TaskError: the new name is not valid, another product has it, or every product would be hidden.
    """

    def changed(header: Header) -> list[TaskInfo]:
        tasks = list(header.tasks)
        chosen = find_named(name, tasks)
        update: dict[str, str | bool] = {} if hidden is None else {"hidden": hidden}
        if new_name is not None:
            update["name"] = _free_name(new_name, [task for task in tasks if task is not chosen])
        tasks[chosen.index] = chosen.model_copy(update=update)
        return tasks

    return _change(path, changed)


def rewrite(old: Checkpoint, tasks: Sequence[TaskInfo], new: dict[str, Tensors] | None = None) -> Checkpoint:
    """Write ``old`` with these of its products instead, numbered anew, and open it; the caller has locked the file.

    All sections are copied, except those in ``new``, which are named as in ``old``.

    Raises:
        CheckpointError: the file cannot be written; the old one is left alone.
    """
    sections: dict[str, Tensors | StoredSection] = {name: old.stored(name) for name in ("backbone", "base")}
    for index, task in enumerate(tasks):
        for part in ("profile", "expert"):
            name = f"tasks.{task.index}.{part}"
            sections[f"tasks.{index}.{part}"] = (new or {}).get(name) or old.stored(name)
    kept = old.header
    header = Header(
        preset=kept.preset,
        config=kept.config,
        preprocessing=kept.preprocessing,
        backbone_sha256=kept.backbone_sha256,
        base_sha256=kept.base_sha256,
        tasks=tuple(task.model_copy(update={"index": index}) for index, task in enumerate(tasks)),
    )
    write_checkpoint(old.path, header, sections)
    return Checkpoint.open(old.path)


def _free_name(name: str, others: Sequence[TaskInfo]) -> str:
    """A valid name in normal form. Raises ``TaskError`` for any other, and one that another product has."""
    try:
        wanted = product_name(name)
    except ValueError as error:
        raise TaskError(f"a product cannot be called {name!r}: {error}.") from error
    if any(same_name(task.name, wanted) for task in others):
        raise TaskError(f"there is a product {wanted!r} already; choose another name, or rename that one first.")
    return wanted


def _change(path: Path, change: Callable[[Header], list[TaskInfo]]) -> Checkpoint:
    Checkpoint.open(path)  # a missing file is an error before the lock makes one beside it
    with exclusive(path):
        old = Checkpoint.open(path)
        tasks = change(old.header)
        if not any(not task.hidden for task in tasks):
            raise TaskError("a checkpoint needs at least one product that is not hidden; remove the file itself.")
        return rewrite(old, tasks)
