"""Evaluations as tables for a terminal."""

from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from moleflow.training.evaluation.records import METRICS, Confusion, Continual, Evaluation, Figures, ServiceAnswers
from moleflow.training.evaluation.seeds import Spread, SpreadFigures, Summary

__all__ = ["HEADINGS", "evaluation_tables", "percent", "summary_tables"]

HEADINGS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "best F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
    "false_alarm_rate": "false alarms",
    "defect_recall": "defects found",
    "routing_accuracy": "routing",
    "good_refused": "good refused",
    "defective_refused": "defective refused",
    "sent_elsewhere": "sent elsewhere",
}
"""Column headings of the metrics."""


def evaluation_tables(evaluation: Evaluation) -> Iterator[Table | Text]:
    """Metrics as routed and with the product named, confusion matrix, refusals, and forgetting."""
    yield _figures_table(evaluation, "As routed, in percent", named=False)
    if _differ(evaluation):
        yield _figures_table(evaluation, "With the true product named, in percent", named=True)
        yield _confusion_table(evaluation.confusion)
    else:
        yield Text("Every image was routed to its own product, so naming it changes nothing.\n")
    yield _service_table(evaluation)
    if evaluation.continual is not None:
        yield _continual_table(evaluation.continual)


def summary_tables(summary: Summary) -> Iterator[Table]:
    """Mean ± standard deviation of each metric over runs."""
    runs = len(summary.checkpoints)
    for named, title in ((False, "As routed"), (True, "With the true product named")):
        table = _table(f"{title}: mean ± standard deviation of {runs} runs, in percent")
        for heading in ["category", HEADINGS["routing_accuracy"], *(HEADINGS[name] for name in METRICS)]:
            table.add_column(heading, justify="left" if heading == "category" else "right")
        for row in summary.categories:
            table.add_row(*_spread_cells(row, named=named))
        table.add_section()
        table.add_row(*_spread_cells(summary.mean, named=named), style="bold")
        yield table
    if summary.forgetting is not None and summary.backward_transfer is not None:
        table = _table(f"Over the sequence, as routed: mean ± standard deviation of {runs} runs, in points")
        for heading in ("figure", "forgetting (FM)", "backward transfer (BWT)"):
            table.add_column(heading, justify="left" if heading == "figure" else "right")
        for name, lost in summary.forgetting.items():
            table.add_row(HEADINGS[name], _plus_minus(lost), _plus_minus(summary.backward_transfer[name]))
        yield table


def percent(fraction: float | None) -> str:
    """A fraction in percent, or a dash."""
    # Adding 0 removes the sign of a negative zero.
    return "–" if fraction is None else f"{round(100 * fraction, 2) + 0.0:.2f}".replace("-", "−")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _figures_table(evaluation: Evaluation, title: str, *, named: bool) -> Table:
    table = _table(title)
    table.add_column("category")
    table.add_column("good + defective", justify="right")
    if not named:
        table.add_column(HEADINGS["routing_accuracy"], justify="right")
    for name in METRICS:
        table.add_column(HEADINGS[name], justify="right")
    for each in evaluation.categories:
        routing = [] if named else [percent(each.routing_accuracy)]
        cells = _cells(each.named if named else each.routed)
        table.add_row(escape(each.category), f"{each.good} + {each.defective}", *routing, *cells)
    table.add_section()
    routing = [] if named else [percent(evaluation.routing_accuracy)]
    table.add_row("mean", "", *routing, *_cells(evaluation.named if named else evaluation.routed), style="bold")
    return table


def _cells(figures: Figures) -> list[str]:
    return [percent(getattr(figures, name)) for name in METRICS]


def _differ(evaluation: Evaluation) -> bool:
    """Whether any image was routed to the wrong product."""
    return any(each.routing_accuracy < 1 for each in evaluation.categories)


def _confusion_table(confusion: Confusion) -> Table:
    table = _table("Images of each category (rows) by the product they were routed to (columns)")
    table.add_column("category")
    for product in confusion.products:
        table.add_column(escape(product), justify="right")
    for category, row in zip(confusion.categories, confusion.counts, strict=True):
        table.add_row(escape(category), *(str(count) if count else "·" for count in row))
    return table


def _service_table(evaluation: Evaluation) -> Table:
    """Images that the service refuses or scores as another product."""
    table = _table("With refusals, as in the service, in percent")
    table.add_column("category")
    for name in ServiceAnswers.model_fields:
        table.add_column(HEADINGS[name], justify="right")
    for each in evaluation.categories:
        table.add_row(escape(each.category), *_service_cells(each.service))
    table.add_section()
    table.add_row("mean", *_service_cells(evaluation.service), style="bold")
    return table


def _service_cells(answers: ServiceAnswers) -> list[str]:
    return [percent(getattr(answers, name)) for name in ServiceAnswers.model_fields]


def _continual_table(continual: Continual) -> Table:
    table = _table(f"Over {len(continual.states)} states of the checkpoint, in points")
    table.add_column("figure")
    for heading in ("forgetting (FM)", "backward transfer (BWT)", "FM, product named", "BWT, product named"):
        table.add_column(heading, justify="right")
    for name, routed in continual.routed.items():
        named = continual.named.get(name)
        table.add_row(
            HEADINGS[name],
            percent(routed.forgetting),
            percent(routed.backward_transfer),
            percent(named.forgetting if named else None),
            percent(named.backward_transfer if named else None),
        )
    return table


def _spread_cells(row: SpreadFigures, *, named: bool) -> list[str]:
    figures = row.named if named else row.routed
    return [escape(row.name), _plus_minus(row.routing_accuracy), *(_plus_minus(figures[name]) for name in METRICS)]


def _plus_minus(spread: Spread | None) -> str:
    return "–" if spread is None else f"{percent(spread.mean)} ± {percent(spread.deviation)}"
