"""`moleflow area`: inspect only a part of a product's images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from moleflow.model.store.areas import Drawing
    from moleflow.model.store.checkpoint import Checkpoint
    from moleflow.model.verdict.area import Area
    from moleflow.model.verdict.results import TaskInfo

__all__ = ["area", "described"]

_EXAMPLE = "'0,0 0.5,0 0.5,1 0,1'"

_Polygons = list[str] | None


def area(
    checkpoint: options.CheckpointArgument,
    product: Annotated[str, typer.Argument(help="A learned product.", metavar="PRODUCT")],
    ignore: Annotated[
        _Polygons,
        typer.Option(
            metavar="POLYGON",
            help=f"Corners x,y from 0,0 (upper left) to 1,1 (lower right), as {_EXAMPLE}; repeat for more.",
        ),
    ] = None,
    inspect: Annotated[
        _Polygons, typer.Option(metavar="POLYGON", help="Inspect only these, less what is ignored; repeat for more.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An image of the same framing: bright is inspected, dark is not."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Inspect all that was learned again.")] = False,
    good: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Folder with a folder PRODUCT of good images that were not trained on, to fit the thresholds to.",
        ),
    ] = None,
    strict: options.Strict = False,
    max_pixels: options.MaxPixels = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Show the inspected area of a product, or set it anew. Other products stay as they are, bit for bit.

    Nothing outside the area raises scores, maps or regions. Thresholds stay unless good images are given: within a
    smaller area good images exceed them less often.
    """
    from moleflow.model.store.areas import set_area
    from moleflow.model.store.checkpoint import Checkpoint

    options.prepare(max_pixels, plugin)
    before = Checkpoint.open(checkpoint).header.task(product)
    if not (ignore or inspect or mask or clear or good):
        typer.echo(f"{before.name} inspects {described(before)}")
        return
    drawing = _drawing(before, ignore, inspect, mask, clear=clear, good=good)
    if good is None:
        _report(before, set_area(checkpoint, product, drawing))
        return
    from moleflow.model.detector import Detector
    from moleflow.training.continual.area import area_calibration
    from moleflow.training.data.datasets import load_categories
    from moleflow.training.data.warnings import report_warnings
    from moleflow.training.progress import Reporter

    reporter = Reporter()
    [category] = load_categories(good, [before.name])
    report_warnings(category.warnings_on("training"), reporter, strict=strict)
    detector = Detector.load(checkpoint, device=device, precision=precision)
    calibrate = area_calibration(detector, category, reporter)
    _report(before, set_area(checkpoint, product, drawing, calibrate))


def described(task: "TaskInfo") -> str:
    """What a product inspects, in words."""
    kept = task.inspected_area
    if kept is None:
        return "the whole image"
    count, patches = int(kept.mask.sum()), kept.mask.size
    words = f"{kept.fraction:.0%} of the image ({count} of {patches} patches)"
    if task.area is None:
        return f"{words}, of which it was learned"
    images = task.area.calibration_images
    thresholds = "from before it had this area" if images is None else f"of {images} good images within the area"
    return f"{words}, with thresholds {thresholds}"


def _drawing(
    task: "TaskInfo", ignore: _Polygons, inspect: _Polygons, mask: Path | None, *, clear: bool, good: Path | None
) -> "Drawing | None":
    """What the options draw; with good images alone, what was drawn before."""
    from moleflow.model.errors import ConfigurationError
    from moleflow.model.images.decode import open_rgb
    from moleflow.model.verdict.outlines import bright

    if sum((bool(ignore or inspect), mask is not None, clear)) > 1 or (clear and good):
        raise ConfigurationError(
            "give one of: polygons (--ignore, --inspect), --mask, or --clear without anything else."
        )
    if clear:
        return None
    if mask is not None:
        return bright(open_rgb(mask))
    if ignore or inspect:
        return _outlines(ignore or [], inspect or [])
    return _drawn_before(task)


def _drawn_before(task: "TaskInfo") -> "Drawing":
    from moleflow.model.errors import ConfigurationError
    from moleflow.model.verdict.area import Outlines

    kept: Area | None = task.area
    if kept is None:
        raise ConfigurationError(
            f"product {task.name!r} has no area that good images could calibrate; draw one with --ignore, --inspect or "
            "--mask. For the whole image use `moleflow recalibrate`."
        )
    drawn = Outlines(inspect=kept.inspect, ignore=kept.ignore)
    return kept.mask if drawn == Outlines() else drawn


def _outlines(ignore: list[str], inspect: list[str]) -> "Drawing":
    from pydantic import ValidationError

    from moleflow.model.errors import ConfigurationError
    from moleflow.model.verdict.area import Outlines

    polygons = {"ignore": list(map(_points, ignore)), "inspect": list(map(_points, inspect))}
    try:
        return Outlines.model_validate(polygons)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"the polygons cannot be used: {place}: {reason}; write {_EXAMPLE}.") from error


def _points(text: str) -> list[list[float]]:
    """``'0,0 0.5,0 …'`` as points. Raises ``ConfigurationError`` if it is none."""
    from moleflow.model.errors import ConfigurationError

    try:
        return [[float(number) for number in point.split(",")] for point in text.split()]
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is no polygon; write its corners as x,y between 0 and 1, such as {_EXAMPLE}."
        ) from error


def _report(before: "TaskInfo", changed: "Checkpoint") -> None:
    task = changed.header.tasks[before.index]
    typer.echo(f"{task.name} inspects {described(task)}; threshold {before.threshold:.2f} -> {task.threshold:.2f}")
    if task.area is not None and task.area.calibration_images is None:
        typer.echo(
            f"at most {task.false_alarm_rate:g} of good images alarm; --good DATA fits the threshold to good images "
            "within the area"
        )
