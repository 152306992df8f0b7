"""Evaluations as tables for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from moleflow.training.evaluation.records import (
    METRICS,
    CategoryFigures,
    Confusion,
    Continual,
    Evaluation,
    Figures,
    ServiceAnswers,
)
from moleflow.training.evaluation.seeds import Spread, SpreadFigures, Summary

__all__ = ["HEADINGS", "evaluation_tables", "percent", "print_tables", "summary_tables"]

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

_WIDTH_WITHOUT_TERMINAL = 200
"""Width of the tables in a file or pipe."""


def print_tables(tables: Iterable[Table | Text]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    for table in tables:
        console.print(table)


def evaluation_tables(evaluation: Evaluation) -> Iterator[Table | Text]:
    """Metrics as routed and with the product named, confusion matrix, refusals, and forgetting."""
    yield _figures_table(evaluation, "As routed, in percent", named=False)
    if any(each.routing_accuracy < 1 for each in evaluation.categories):
        yield _figures_table(evaluation, "With the true product named, in percent", named=True)
        yield _confusion_table(evaluation.confusion)
    else:
        yield Text("Every image was routed to its own product, so naming it changes nothing.\n")
    yield _table(
        "With refusals, as in the service, in percent",
        ["category", *(HEADINGS[name] for name in ServiceAnswers.model_fields)],
        [[escape(each.category), *_cells(each.service)] for each in evaluation.categories],
        ["mean", *_cells(evaluation.service)],
    )
    if evaluation.continual is not None:
        yield _continual_table(evaluation.continual)


def summary_tables(summary: Summary) -> Iterator[Table]:
    """Mean ± standard deviation of each metric over runs."""
    runs = len(summary.checkpoints)
    for named, title in ((False, "As routed"), (True, "With the true product named")):
        yield _table(
            f"{title}: mean ± standard deviation of {runs} runs, in percent",
            ["category", HEADINGS["routing_accuracy"], *(HEADINGS[name] for name in METRICS)],
            [_spread_cells(row, named=named) for row in summary.categories],
            _spread_cells(summary.mean, named=named),
        )
    if summary.forgetting is not None and summary.backward_transfer is not None:
        pairs = [(name, lost, summary.backward_transfer[name]) for name, lost in summary.forgetting.items()]
        yield _table(
            f"Over the sequence, as routed: mean ± standard deviation of {runs} runs, in points",
            ["figure", "forgetting (FM)", "backward transfer (BWT)"],
            [[HEADINGS[name], _plus_minus(lost), _plus_minus(gained)] for name, lost, gained in pairs],
        )


def percent(fraction: float | None) -> str:
    """A fraction in percent, or a dash."""
    # Adding 0 removes the sign of a negative zero.
    return "–" if fraction is None else f"{round(100 * fraction, 2) + 0.0:.2f}".replace("-", "−")


def _table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], mean: Sequence[str] | None = None
) -> Table:
    """A table with ``mean`` as its last row; all columns but the first are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    if mean is not None:
        table.add_section()
        table.add_row(*mean, style="bold")
    return table


def _figures_table(evaluation: Evaluation, title: str, *, named: bool) -> Table:
    def row(name: str, count: str, each: Evaluation | CategoryFigures) -> list[str]:
        routing = [] if named else [percent(each.routing_accuracy)]
        return [name, count, *routing, *_cells(each.named if named else each.routed)]

    rows = [row(escape(each.category), f"{each.good} + {each.defective}", each) for each in evaluation.categories]
    names = METRICS if named else ("routing_accuracy", *METRICS)
    headings = ["category", "good + defective", *(HEADINGS[name] for name in names)]
    return _table(title, headings, rows, row("mean", "", evaluation))


def _cells(figures: Figures | ServiceAnswers) -> list[str]:
    return [percent(getattr(figures, name)) for name in type(figures).model_fields]


def _confusion_table(confusion: Confusion) -> Table:
    counted = zip(confusion.categories, confusion.counts, strict=True)
    return _table(
        "Images of each category (rows) by the product they were routed to (columns)",
        ["category", *map(escape, confusion.products)],
        [[escape(category), *(str(count) if count else "·" for count in row)] for category, row in counted],
    )


def _continual_table(continual: Continual) -> Table:
    rows = []
    for name, routed in continual.routed.items():
        named = continual.named.get(name)
        measured = [routed.forgetting, routed.backward_transfer]
        measured += [None, None] if named is None else [named.forgetting, named.backward_transfer]
        rows.append([HEADINGS[name], *map(percent, measured)])
    return _table(
        f"Over {len(continual.states)} states of the checkpoint, in points",
        ["figure", "forgetting (FM)", "backward transfer (BWT)", "FM, product named", "BWT, product named"],
        rows,
    )


def _spread_cells(row: SpreadFigures, *, named: bool) -> list[str]:
    figures = row.named if named else row.routed
    return [escape(row.name), _plus_minus(row.routing_accuracy), *(_plus_minus(figures[name]) for name in METRICS)]


def _plus_minus(spread: Spread | None) -> str:
    return "–" if spread is None else f"{percent(spread.mean)} ± {percent(spread.deviation)}"
