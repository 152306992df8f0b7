"""Write a checkpoint with a product added or replaced; everything else is kept."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from moleflow.model.config import ModelConfig
from moleflow.model.errors import one_line
from moleflow.model.features.backbone import Backbone
from moleflow.model.flow.expert import Base
from moleflow.model.store.checkpoint import Checkpoint, Header, Tensors, write_checkpoint
from moleflow.model.store.sections import digest_tensors
from moleflow.model.store.tensor_file import StoredSection
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, TaskCalibration
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.config import TrainingConfig
from moleflow.training.errors import DivergenceError
from moleflow.training.fit.cross_fitting import Split

__all__ = ["LearnedProduct", "save_task", "task_info"]


@dataclass(frozen=True, slots=True)
class LearnedProduct:
    """The record of a learned product and its two sections of the checkpoint."""

    info: TaskInfo
    profile: Tensors
    expert: Tensors


def task_info(
    name: str,
    index: int,
    parts: Split,
    training: TrainingConfig,
    epochs: int,
    held_out: Tensors,
    profile: Tensors,
    expert: Tensors,
    white_level: int | None = None,
) -> TaskInfo:
    """The record of a task that was fitted in ``epochs``.

    ``held_out`` are its calibration scores, ``profile`` and ``expert`` its sections.

    Raises:
        DivergenceError: held-out scores are not finite.
    """
    try:
        calibration = TaskCalibration.fit({key: value.tolist() for key, value in held_out.items()})
    except ValueError as error:
        raise DivergenceError(
            f"the fit of {name!r} diverged: its held-out images do not calibrate it ({one_line(error)}), and nothing "
            "of it is kept; look at its images, or train with a lower --learning-rate or --precision fp32."
        ) from error
    return TaskInfo(
        name=name,
        index=index,
        learned_at=datetime.now(UTC),
        train_images=len(parts.fit),
        held_out_images=sum(map(len, parts.folds)),
        altered_copies=training.altered_copies,
        folds=len(parts.folds),
        epochs=epochs,
        seed=training.seed,
        false_alarm_rate=DEFAULT_FALSE_ALARM_RATE,
        threshold=calibration.scores.threshold(DEFAULT_FALSE_ALARM_RATE),
        pixel_threshold=calibration.peaks.threshold(DEFAULT_FALSE_ALARM_RATE),
        parameters=sum(value.numel() for section in (profile, expert) for value in section.values()),
        white_level=white_level,
        profile_sha256=digest_tensors(profile),
        sha256=digest_tensors(expert),
    )


def save_task(
    path: Path,
    old: Checkpoint | None,
    preset: str,
    config: ModelConfig,
    backbone: Backbone,
    base: Base,
    learned: LearnedProduct,
) -> Checkpoint:
    """Write the checkpoint ``old``, or a new one, with the product ``learned`` added or replaced, and open it.

    Backbone, base, other tasks and the name of the ``preset`` are kept from ``old``; their bytes are copied from file
    to file. Only a base that learns with every task (``FlowConfig.sharing``) is written again.

    Raises:
        CheckpointError: the file cannot be written; an older file is left alone.
    """
    infos, index = list(old.header.tasks) if old else [], learned.info.index
    infos[index : index + 1] = [learned.info]
    sections: dict[str, Tensors | StoredSection] = {}
    if old is None:
        weights = _state(backbone.net)
        sections["backbone"], backbone_sha256 = weights, digest_tensors(weights)
    else:
        sections |= {name: old.stored(name) for name in old.header.digests()}
        preset, backbone_sha256 = old.header.preset, old.header.backbone_sha256
    if old is None or config.flow.sharing == "sequential" or config.flow.starts_base(index):
        # Separate bases are in the tasks' expert sections.
        weights = {} if config.flow.sharing == "separated" else _state(base)
        sections["base"], base_sha256 = weights, digest_tensors(weights)
    else:
        base_sha256 = old.header.base_sha256
    sections |= {f"tasks.{index}.profile": learned.profile, f"tasks.{index}.expert": learned.expert}
    header = Header(
        preset=preset,
        config=config,
        preprocessing=backbone.preprocessing,
        backbone_sha256=backbone_sha256,
        base_sha256=base_sha256,
        tasks=tuple(infos),
    )
    write_checkpoint(path, header, sections)
    return Checkpoint.open(path)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu() for key, value in module.state_dict().items()}
