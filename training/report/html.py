"""An evaluation as one self-contained HTML file, without scripts or external resources."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moleflow.training.evaluation.aupro import FPR_LIMIT
from moleflow.training.evaluation.curves import Curve
from moleflow.training.evaluation.evaluate import Measured
from moleflow.training.evaluation.records import METRICS, Confusion, Evaluation, ServiceAnswers
from moleflow.training.report.charts import curve_chart, histogram
from moleflow.training.report.examples import case_groups
from moleflow.training.report.tables import HEADINGS, percent

__all__ = ["report_page"]

_HEADLINES = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "false_alarm_rate", "defect_recall")
"""Metrics shown at the top, after the routing accuracy."""


def report_page(evaluation: Evaluation, measured: Sequence[Measured]) -> str:
    """The page as HTML. ``DatasetError`` if an example image can no longer be read."""
    environment = Environment(
        loader=PackageLoader("moleflow.training.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    headlines = [("routing_accuracy", evaluation.routing_accuracy)]
    headlines += [(name, getattr(evaluation.routed, name)) for name in _HEADLINES]
    return environment.get_template("report.html").render(
        evaluation=evaluation,
        headings=HEADINGS,
        metrics=METRICS,
        answers=tuple(ServiceAnswers.model_fields),
        headlines=headlines,
        images=sum(each.good + each.defective for each in evaluation.categories),
        misrouted=any(each.routing_accuracy < 1 for each in evaluation.categories),
        matrix=_matrix(evaluation.confusion),
        sections=[_section(each) for each in measured],
    )


def _matrix(confusion: Confusion) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """Rows of the confusion matrix: for each product the count, its fraction of the row, and whether it is correct."""
    return [
        (
            category,
            [
                (count, count / max(sum(row), 1), product == category)
                for product, count in zip(confusion.products, row, strict=True)
            ],
        )
        for category, row in zip(confusion.categories, confusion.counts, strict=True)
    ]


def _section(measured: Measured) -> dict[str, Any]:
    figures, curves = measured.figures, measured.curves
    scores: dict[bool, list[float]] = {False: [], True: []}
    for outcome in measured.outcomes:
        scores[outcome.sample.is_anomalous].append(outcome.routed.score)
    rocs = [("images", curves.image_roc), ("pixels", curves.pixel_roc)]
    charts = {
        "Image scores": histogram(scores[False], scores[True], figures.threshold),
        "ROC": curve_chart(_drawn(rocs), limit=1.0, rise="found"),
        "PRO of regions": curve_chart(_drawn([("pixels", curves.pro)]), limit=FPR_LIMIT, rise="mean overlap"),
    }
    return {
        "figures": figures,
        # Text in charts is escaped already.
        "charts": {title: Markup(drawing) for title, drawing in charts.items() if drawing},
        "groups": case_groups(measured.outcomes),
    }


def _drawn(curves: Sequence[tuple[str, Curve | None]]) -> list[tuple[str, Curve]]:
    return [(label, curve) for label, curve in curves if curve is not None]
