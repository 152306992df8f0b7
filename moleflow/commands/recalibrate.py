"""`moleflow recalibrate`: thresholds from more good images, without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from moleflow.training.continual.recalibrate import Recalibrated

__all__ = ["recalibrate"]


def recalibrate(
    checkpoint: options.CheckpointArgument,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder per product, whose good training images join those that calibrate.",
        ),
    ],
    product: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A product; repeat for more. Default: all learned ones in DATA."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")] = False,
    strict: options.Strict = False,
    max_pixels: options.MaxPixels = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    false_alarm_rate: options.FalseAlarmRate = None,
) -> None:
    """Fit thresholds and p-values to more good images, without training.

    Give good images that were not trained on, all of a period rather than the false alarms alone. Images that calibrate
    already are not counted again. Defective test images are counted only. Other products stay bit-identical.
    """
    from moleflow.model.detector import Detector
    from moleflow.model.errors import ConfigurationError
    from moleflow.training.continual.recalibrate import recalibrate as fit_again
    from moleflow.training.data.datasets import discover, load_categories
    from moleflow.training.data.warnings import report_warnings
    from moleflow.training.progress import Reporter

    options.prepare(max_pixels, plugin)
    reporter, given = Reporter(), options.given({"false_alarm_rate": false_alarm_rate})
    detector = Detector.load(checkpoint, device=device, precision=precision, **given)
    names = product or [task.name for task in detector.tasks if task.name in discover(data)]
    if not names:
        raise ConfigurationError(
            f"none of the products in {str(data)!r} ({', '.join(discover(data))}) was learned; name the folder of each "
            "as the product."
        )
    categories = load_categories(data, names)
    report_warnings([each for one in categories for each in one.warnings_on("training")], reporter, strict=strict)
    for result in fit_again(checkpoint, detector, categories, reporter=reporter, dry_run=dry_run):
        typer.echo(_line(result))


def _line(result: "Recalibrated") -> str:
    threshold, alarms, found = result.threshold, result.alarms, result.found
    line = (
        f"{result.product}: {result.added} of {result.good} good images are new; threshold {threshold.before:.2f} -> "
        f"{threshold.after:.2f}; alarms among the good images {alarms.before} -> {alarms.after}"
    )
    defects = f"; defects found {found.before} -> {found.after} of {result.defects}" if result.defects else ""
    return line + defects
