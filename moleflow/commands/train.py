"""`moleflow train`: learn products one after another into one checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moleflow.commands.options import (
    BackboneName,
    BackboneWeights,
    BatchSize,
    Cache,
    Device,
    Epochs,
    ImageSize,
    MaxPixels,
    Plugin,
    PrecisionName,
    PrecisionOption,
    Seed,
    Strict,
    given,
)

if TYPE_CHECKING:
    from moleflow.model.config import ModelConfig

__all__ = ["train"]


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder with one folder a product (MVTec AD or VisA layout, or plain images)."
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="The file to create, or to add products to.")],
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A product to learn; repeat for more, in that order. Default: all in DATA."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="main (the published method), fast (whitened embeddings, minutes on a CPU), small (embedded backbone, "
            "offline) or compact (main with small experts). Default: main, or what CHECKPOINT began with."
        ),
    ] = None,
    backbone: BackboneName = None,
    backbone_weights: BackboneWeights = None,
    plugin: Plugin = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate.")] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Further fits that calibrate a product of under 100 images; 1 holds some images out instead. "
            "Default: 5.",
        ),
    ] = None,
    seed: Seed = 0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Retrain products that were learned before (not the first).")
    ] = False,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    cache: Cache = None,
    device: Device = "auto",
    precision: PrecisionOption = PrecisionName.AUTO,
) -> None:
    """Learn products from images of good parts, one after another, into one checkpoint.

    An existing checkpoint is added to: its earlier products stay as they are, bit for bit, and their images are not
    needed. Stopped with Ctrl-C or killed, the same command goes on from the last whole epoch.
    """
    from moleflow.model.errors import ConfigurationError
    from moleflow.model.features.backbone import import_plugin
    from moleflow.model.images.decode import MAX_PIXELS, limit_pixels
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.model.store.checkpoint import Checkpoint
    from moleflow.training.config import preset as find_preset
    from moleflow.training.continual.sequence import train_tasks
    from moleflow.training.data.datasets import discover, passed_over
    from moleflow.training.data.warnings import tell
    from moleflow.training.progress import Reporter

    configure_threads()
    limit_pixels(max_pixels or MAX_PIXELS)
    if plugin:
        import_plugin(plugin)
    reporter = Reporter()
    stored = Checkpoint.open(checkpoint).header if checkpoint.exists() else None
    chosen = find_preset(preset or (stored.preset if stored else "main"))
    schedule = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "folds": folds, "seed": seed,
    }  # fmt: skip
    network = given({"name": backbone, "image_size": image_size})
    if stored:
        if preset and preset != stored.preset:
            raise ConfigurationError(
                f"--preset {preset} differs from {stored.preset}, with which {str(checkpoint)!r} began: it decides "
                "network and schedule; leave the option out (--epochs, --batch-size and --learning-rate change the "
                "schedule), or train a new checkpoint."
            )
        _check_against(stored.config, checkpoint, network)
        if backbone_weights is not None:
            # Not an error: a command that is given again to go on after an interruption says the same as before.
            reporter.line(f"{checkpoint} holds its backbone already; {backbone_weights} is not read")
    chosen = chosen.with_changes(backbone=network, training=given(schedule))
    if not task:
        task = list(discover(data))
        tell(passed_over(data), reporter, strict=strict)
    try:
        train_tasks(
            data, task, checkpoint, preset=chosen, backbone_weights=backbone_weights,
            replace=replace, device=device, precision=precision.value, cache=cache, reporter=reporter, strict=strict,
        )  # fmt: skip
    except KeyboardInterrupt:
        reporter.line("stopped; give the same command again to go on from the last whole epoch")
        raise typer.Exit(130) from None


def _check_against(stored: "ModelConfig", checkpoint: Path, network: dict[str, Any]) -> None:
    """What shapes the network was decided with the first task; say so instead of passing over an option."""
    from moleflow.model.errors import ConfigurationError

    for key, value in network.items():
        decided = getattr(stored.backbone, key)
        if decided != value:
            option = {"name": "--backbone", "image_size": "--image-size"}[key]
            raise ConfigurationError(
                f"{option} {value} differs from {decided} in {str(checkpoint)!r}, which decides; leave the "
                "option out, or train a new checkpoint."
            )
