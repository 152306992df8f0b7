"""`moleflow evaluate`: measure a checkpoint on labelled test images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from moleflow.training.evaluation.evaluate import Measured
    from moleflow.training.evaluation.records import Evaluation
    from moleflow.training.progress import Reporter

__all__ = ["evaluate"]


def evaluate(
    checkpoint: options.CheckpointArgument,
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
    strict: options.Strict = False,
    max_pixels: options.MaxPixels = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    engine: options.Engine = "auto",
) -> None:
    """Measure a checkpoint on test images: image AUROC, AP and F1; pixel AUROC, AP and AUPRO; routing; verdicts.

    Each image is scored twice, as routed and as its true product; the backbone runs once for both. Nothing is tuned on
    test images: the thresholds are those of the checkpoint. Images and masks are checked first. If the evaluation ends
    early, the results so far are shown and written.
    """
    from moleflow.model.detector import Detector
    from moleflow.model.files.outputs import check_output
    from moleflow.training.data.selection import load_test_categories
    from moleflow.training.evaluation.evaluate import evaluate as measure
    from moleflow.training.evaluation.forgetting import check_sequence, continual_figures
    from moleflow.training.evaluation.states import evaluation_of, name_and_products, open_state
    from moleflow.training.progress import Reporter

    options.prepare(max_pixels, plugin)
    for what, path in (("the figures", json), ("the report", report)):
        if path:  # fail before the evaluation
            check_output(what, path, inputs=(checkpoint, *(history or ())))
    reporter = Reporter()
    detector = Detector.load(checkpoint, device=device, precision=precision, engine=engine)
    categories = load_test_categories(data, [each.name for each in detector.tasks], task or (), reporter, strict=strict)
    states = [open_state(path, device=device, precision=precision) for path in history or ()]
    check_sequence(list(map(name_and_products, [*states, detector])), [each.name for each in categories])
    results = _Results(json, report, reporter)
    try:
        earlier = [evaluation_of(state, categories, batch_size, reporter) for state in states]
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
        from moleflow.training.evaluation.records import write_json

        self._latest = evaluation, measured
        if self._json:
            write_json("the figures", self._json, evaluation)

    def show(self) -> None:
        from moleflow.model.files.outputs import write_text
        from moleflow.training.report.html import report_page
        from moleflow.training.report.tables import evaluation_tables, print_tables

        if self._latest is None:
            return
        evaluation, measured = self._latest
        if self._report:
            write_text("the report", self._report, report_page(evaluation, measured))
            self._reporter.line(f"report: {self._report}")
        print_tables(evaluation_tables(evaluation))
        if evaluation.unmeasured:
            self._reporter.line(f"ended early; not evaluated: {', '.join(evaluation.unmeasured)}")
