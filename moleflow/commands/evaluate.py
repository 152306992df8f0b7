"""`moleflow evaluate`: measure a checkpoint on labelled test images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands.options import (
    CheckpointArgument,
    Device,
    MaxPixels,
    Plugin,
    PrecisionName,
    PrecisionOption,
    Strict,
)

if TYPE_CHECKING:
    from moleflow.model.detector import Detector
    from moleflow.training.data.datasets import Category
    from moleflow.training.evaluation.evaluate import Measured
    from moleflow.training.evaluation.records import Evaluation
    from moleflow.training.progress import Reporter

__all__ = ["evaluate"]

WIDTH_WITHOUT_TERMINAL = 160
"""Width of the tables in a file or pipe."""


def evaluate(
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with one folder per product (MVTec AD or VisA layout).")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A product to evaluate; repeat for more. Default: all learned ones in DATA."),
    ] = None,
    history: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An earlier version of CHECKPOINT, or the --json file of its evaluation; repeat, oldest first. "
            "Adds forgetting and backward transfer.",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all results as JSON.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML report with tables, charts and images.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    plugin: Plugin = None,
    device: Device = "auto",
    precision: PrecisionOption = PrecisionName.AUTO,
) -> None:
    """Measure a checkpoint on test images: image AUROC, AP and F1; pixel AUROC, AP and AUPRO; routing; verdicts.

    Each image is scored twice, as routed and as its true product; the backbone runs once for both. Nothing is tuned on
    test images: the thresholds are those of the checkpoint. Images and masks are checked first. If the evaluation ends
    early, the results so far are shown and written.
    """
    from moleflow.model.detector import Detector
    from moleflow.model.features.backbone import import_plugin
    from moleflow.model.files.outputs import check_output
    from moleflow.model.images.decode import MAX_PIXELS, limit_pixels
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.training.data.selection import load_test_categories
    from moleflow.training.evaluation.evaluate import evaluate as measure
    from moleflow.training.evaluation.forgetting import check_sequence, continual_figures
    from moleflow.training.progress import Reporter

    configure_threads()
    limit_pixels(max_pixels or MAX_PIXELS)
    for what, path in (("the figures", json), ("the report", report)):
        if path:  # fail before the evaluation
            check_output(what, path, inputs=(checkpoint, *(history or ())))
    if plugin:
        import_plugin(plugin)
    reporter = Reporter()
    detector = Detector.load(checkpoint, device=device, precision=precision.value)
    categories = load_test_categories(data, [each.name for each in detector.tasks], task or (), reporter, strict=strict)
    states: list[Evaluation | Detector] = [_state(path, device, precision) for path in history or ()]
    check_sequence([*map(_name_and_products, states), _name_and_products(detector)], [each.name for each in categories])
    results = _Results(json, report, reporter)
    try:
        earlier = _measure_earlier(states, categories, batch_size, reporter)
        evaluation, measured = measure(
            detector, categories, batch_size=batch_size, reporter=reporter, keep=results.keep
        )
        if states:
            evaluation = evaluation.model_copy(update={"continual": continual_figures([*earlier, evaluation])})
            results.keep(evaluation, measured)
    finally:
        results.show()


class _Results:
    """The results so far: written as soon as they are available, shown at the end even after an error."""

    def __init__(self, json: Path | None, report: Path | None, reporter: "Reporter") -> None:
        self._json, self._report, self._reporter = json, report, reporter
        self._latest: tuple[Evaluation, list[Measured]] | None = None

    def keep(self, evaluation: "Evaluation", measured: "list[Measured]") -> None:
        """Replace the results so far."""
        from moleflow.training.evaluation.records import write_json

        self._latest = evaluation, measured
        if self._json:
            write_json("the figures", self._json, evaluation)

    def show(self) -> None:
        """Print the tables and write the report, if there are results."""
        from rich.console import Console

        from moleflow.model.files.outputs import write_text
        from moleflow.training.report.html import report_page
        from moleflow.training.report.tables import evaluation_tables

        if self._latest is None:
            return
        evaluation, measured = self._latest
        if self._report:
            write_text("the report", self._report, report_page(evaluation, measured))
            self._reporter.line(f"report: {self._report}")
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH_WITHOUT_TERMINAL)
        for table in evaluation_tables(evaluation):
            console.print(table)
        if evaluation.unmeasured:
            self._reporter.line(f"ended early; not evaluated: {', '.join(evaluation.unmeasured)}")


def _state(path: Path, device: str, precision: PrecisionName) -> "Evaluation | Detector":
    """An earlier state: a stored evaluation, or a checkpoint to evaluate."""
    from moleflow.model.detector import Detector
    from moleflow.training.evaluation.records import read_evaluation

    if path.suffix == ".json":
        return read_evaluation(path)
    return Detector.load(path, device=device, precision=precision.value)


def _measure_earlier(
    states: "Sequence[Evaluation | Detector]", categories: "Sequence[Category]", batch_size: int, reporter: "Reporter"
) -> "list[Evaluation]":
    """Evaluations of the earlier states; stored ones are used as they are."""
    from moleflow.model.detector import Detector
    from moleflow.training.evaluation.evaluate import evaluate as measure

    evaluations = []
    for state in states:
        if not isinstance(state, Detector):
            evaluations.append(state)
            continue
        name, products = _name_and_products(state)
        reporter.line(f"earlier state {name}")
        known = [each for each in categories if each.name in products]
        evaluations.append(measure(state, known, batch_size=batch_size, reporter=reporter)[0])
    return evaluations


def _name_and_products(state: "Evaluation | Detector") -> tuple[str, tuple[str, ...]]:
    from moleflow.model.detector import Detector

    if isinstance(state, Detector):
        return state.checkpoint.name, tuple(each.name for each in state.tasks)
    return state.checkpoint, state.products
