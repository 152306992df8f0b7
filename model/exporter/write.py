"""Writing an exported folder."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from moleflow.model.errors import ConfigurationError
from moleflow.model.exported.manifest import (
    CALIBRATIONS,
    MANIFEST,
    FileEntry,
    GraphFormat,
    Manifest,
    Source,
    expert_name,
)
from moleflow.model.exporter.forms import FORMS, Writer
from moleflow.model.exporter.graphs import expert_graph, features_graph, router_graph
from moleflow.model.files.atomic import sync, workspace
from moleflow.model.files.outputs import reason, remedy
from moleflow.model.store.checkpoint import Checkpoint

__all__ = ["export_checkpoint"]


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    graphs: GraphFormat = "openvino",
    on_product: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a checkpoint as a folder, which appears complete or not at all.

    ``on_product`` is called with the name of each product that has been written.

    Raises:
        ConfigurationError: ``out`` exists and is not empty, or cannot be written.
        CheckpointError, BackboneError: the checkpoint is damaged, or its network cannot be exported.
    """
    header = checkpoint.header
    with _new_folder(out) as folder, torch.no_grad():
        writer = Writer(FORMS[graphs]())
        network = features_graph(checkpoint)
        writer.write(folder / "features", network)
        features = network.module(*network.examples)
        writer.write(folder / "router", router_graph(checkpoint, features))
        (folder / "experts").mkdir()
        held_out: dict[str, np.ndarray] = {}
        for place, task in enumerate(header.visible):
            writer.write(folder / expert_name(place), expert_graph(checkpoint, task.index, features))
            calibration = checkpoint.profile(task.index).calibration
            for each in fields(calibration):
                held_out[f"{place}.{each.name}"] = getattr(calibration, each.name).scores.astype(np.float32)
            on_product(task.name)
        (folder / CALIBRATIONS).write_bytes(safetensors.numpy.save(held_out))  # save_file makes private files
        names = list(Manifest.names(graphs, len(header.visible)))
        # Hidden products are left behind.
        tasks = tuple(task.model_copy(update={"index": place}) for place, task in enumerate(header.visible))
        manifest = Manifest(
            graphs=graphs,
            checkpoint=Source(name=checkpoint.info.name, digest=checkpoint.info.digest),
            header=header.model_copy(update={"tasks": tasks}),
            files={name: _entry(folder / name) for name in names},
        )
        (folder / MANIFEST).write_text(manifest.document(), encoding="utf-8")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to ``out`` at the end."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigurationError(
                f"{str(out)!r} exists already, and a service may be reading it; choose a new name, or remove it first."
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        with workspace(Path(os.path.realpath(out))) as place:
            folder = place / "exported"
            folder.mkdir()
            yield folder
            for path in (*folder.rglob("*"), folder):
                sync(path)
            folder.replace(os.path.realpath(out))
            sync(out.parent)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {str(out)!r} cannot be written ({reason(error)}); {remedy(error)}."
        ) from error


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileEntry(bytes=path.stat().st_size, sha256=digest.hexdigest())
