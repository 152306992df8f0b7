"""`moleflow train`: learn products one after another into one checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from moleflow.model.config import ModelConfig

__all__ = ["train"]


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder with one folder per product (MVTec AD or VisA layout, or just images)."
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="The file to create or to add products to.")],
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A product to learn; repeat for more, in order. Default: all in DATA."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="fast (flow and memory, minutes on a CPU), small (the same with the bundled backbone, offline), main "
            "(the published method) or compact (main with small experts). Default: fast, or that of CHECKPOINT."
        ),
    ] = None,
    backbone: options.BackboneName = None,
    backbone_weights: options.BackboneWeights = None,
    plugin: options.Plugin = None,
    image_size: options.ImageSize = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate.")] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cross-fitting folds to calibrate a product of under 100 images; 1 holds some images out instead. "
            "Default: 5.",
        ),
    ] = None,
    seed: options.Seed = 0,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Retrain products that are already learned (the first only while there is no other)."
        ),
    ] = False,
    areas: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Parts of images that products are learned from and inspect, as JSON."),
    ] = None,
    strict: options.Strict = False,
    max_pixels: options.MaxPixels = None,
    cache: options.Cache = None,
    progress: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the progress in FILE, as JSON, for other programs."),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    ray: options.RayAddress = None,
    worker_cpus: options.WorkerCpus = 1.0,
    worker_gpus: options.WorkerGpus = 0.0,
    ship_images: Annotated[
        bool, typer.Option("--ship-images", help="With --ray: send images to the workers, which do not see DATA.")
    ] = False,
) -> None:
    """Learn products from images of good parts, one after another, into one checkpoint.

    Products are added to an existing checkpoint: earlier products stay the same, bit for bit, and their images are not
    needed. After an interruption, run the same command again to continue from the last complete epoch. With --ray, all
    products after the first are learned beside each other.
    """
    from moleflow.model.errors import ConfigurationError
    from moleflow.model.store.checkpoint import Checkpoint
    from moleflow.training.config import DEFAULT_PRESET
    from moleflow.training.config import preset as find_preset
    from moleflow.training.continual.sequence import train_tasks
    from moleflow.training.data.areas import read_areas
    from moleflow.training.data.datasets import discover, stray_images
    from moleflow.training.data.warnings import report_warnings
    from moleflow.training.progress import Reporter
    from moleflow.training.progress_file import ProgressFile

    options.prepare(max_pixels, plugin)
    if ray is not None and (replace or progress is not None):
        raise ConfigurationError(f"--{'replace' if replace else 'progress'} is for learning here; leave out --ray.")
    reporter = Reporter(progress=ProgressFile(progress) if progress is not None else None)
    stored = Checkpoint.open(checkpoint).header if checkpoint.exists() else None
    chosen = find_preset(preset or (stored.preset if stored else DEFAULT_PRESET))
    schedule = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "folds": folds,
        "seed": seed,
    }
    network = options.given({"name": backbone, "image_size": image_size})
    if stored:
        if preset and preset != stored.preset:
            raise ConfigurationError(
                f"--preset {preset} differs from {stored.preset}, the preset of {str(checkpoint)!r}, which determines "
                "network and schedule; omit the option (--epochs, --batch-size and --learning-rate change the "
                "schedule), or train a new checkpoint."
            )
        _check_against(stored.config, checkpoint, network)
        if backbone_weights is not None:
            # Not an error: the same command is run again to continue after an interruption.
            reporter.line(f"{checkpoint} already contains its backbone; {backbone_weights} is ignored")
    chosen = chosen.with_changes(backbone=network, training=options.given(schedule))
    if not task:
        task = list(discover(data))
        report_warnings(stray_images(data), reporter, strict=strict)
    given: dict[str, Any] = {
        "preset": chosen,
        "backbone_weights": backbone_weights,
        "device": device,
        "precision": precision,
        "cache": cache,
        "areas": None if areas is None else read_areas(areas),
        "reporter": reporter,
        "strict": strict,
    }
    with options.resumable(reporter):
        if ray is None:
            train_tasks(data, task, checkpoint, replace=replace, **given)
        else:
            from moleflow.cluster.connection import Share, require_ray

            require_ray()
            from moleflow.cluster.training import ClusterOptions, train_on_ray

            cluster = ClusterOptions(ray, Share(worker_cpus, worker_gpus), ship_images)
            train_on_ray(data, task, checkpoint, cluster=cluster, plugin=plugin, max_pixels=max_pixels, **given)


def _check_against(stored: "ModelConfig", checkpoint: Path, network: dict[str, Any]) -> None:
    """Reject options that differ from the network of the checkpoint, which is fixed by its first task."""
    from moleflow.model.errors import ConfigurationError

    for key, value in network.items():
        fixed = getattr(stored.backbone, key)
        if fixed != value:
            option = {"name": "--backbone", "image_size": "--image-size"}[key]
            raise ConfigurationError(
                f"{option} {value} differs from {fixed} in {str(checkpoint)!r} and cannot be changed; omit the "
                "option, or train a new checkpoint."
            )
