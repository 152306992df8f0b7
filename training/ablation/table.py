"""A study's results as a table for the terminal, Markdown or JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from moleflow.training.ablation.runner import RowResult
from moleflow.training.ablation.studies import Row, Study
from moleflow.training.evaluation.cached import CategoryMetrics
from moleflow.training.report.markdown import markdown_table

__all__ = ["StudyTable"]

METRICS = {
    "image_auroc": "img AUROC",
    "pixel_auroc": "pix AUROC",
    "image_ap": "img AP",
    "pixel_ap": "pix AP",
    "routing": "routing",
}
"""Fields of ``CategoryMetrics`` in the tables, and their headings; means over categories, in percent."""

FORGETTING = {"image_auroc": "forgets img AUROC", "pixel_ap": "forgets pix AP"}
"""Metrics of forgetting: the mean drop of earlier tasks from just after learning to the end, with the product named."""


@dataclass(frozen=True, slots=True)
class StudyTable:
    """The rows of ``study`` with their results, the full configuration first."""

    study: Study
    results: Sequence[tuple[Row, RowResult]]

    def headings(self) -> list[str]:
        forgetting = FORGETTING.values() if self.study.forgetting else ()
        return ["configuration", *METRICS.values(), *forgetting, "params / later task", "train s"]

    def cells(self) -> list[list[str]]:
        """The cells of each row: values and, except in the first row, differences from the full configuration."""
        full = self.document()["rows"][0]
        rows = []
        for number, entry in enumerate(self.document()["rows"]):
            measured = [_percent(entry["mean"][key], None if number == 0 else entry["delta"][key]) for key in METRICS]
            if self.study.forgetting:
                measured += [_percent(entry["forgetting"][key]) for key in FORGETTING]
            ratio = entry["parameters_per_later_task"] / full["parameters_per_later_task"]
            parameters = f"{entry['parameters_per_later_task'] / 1e6:.2f} M ({ratio:.2f}×)"
            name = f"{entry['name']} (full)" if number == 0 and entry["name"] != "full" else entry["name"]
            rows.append([name, *measured, parameters, f"{entry['train_seconds']:.0f}"])
        return rows

    def markdown(self) -> str:
        """A Markdown table with the published results as a column, and the rows' notes below."""
        headings = [*self.headings(), "published: img / pix AUROC / pix AP"]
        rows = [[*cells, _published(row)] for cells, (row, _) in zip(self.cells(), self.results, strict=True)]
        first = self.results[0][1]
        lines = [
            f"### {self.study.title} (`{self.study.name}`)",
            "",
            markdown_table(headings, rows, right_from=1),
            "",
            f"Measured: {' → '.join(first.tasks)}; {first.model.backbone.name}, {first.model.backbone.image_size} px, "
            f"{first.training.epochs} epochs, seed {first.training.seed}, {first.environment['precision']}, "
            f"{first.finished_at:%Y-%m-%d}. Means over these products; differences to the first row in points.",
            "Published: MVTec AD, 15 categories, WideResNet-50-2, 60 epochs.",
        ]
        notes = [f"- {row.name}: {row.note}." for row, _ in self.results if row.note]
        return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"

    def document(self) -> dict[str, Any]:
        """All values, unrounded; fractions in 0…1."""
        full = _means(self.results[0][1].categories)
        rows = []
        for row, result in self.results:
            mean = _means(result.categories)
            later = result.parameters[1:] or result.parameters
            rows.append(
                {
                    "name": row.name,
                    "note": row.note,
                    "mean": mean,
                    "delta": {key: _difference(mean[key], full[key]) for key in METRICS},
                    "forgetting": {key: _forgetting(result, key) for key in FORGETTING},
                    "parameters_per_later_task": fmean(later),
                    "train_seconds": result.train_seconds,
                    "published_percent": {key: getattr(row.published, key) for key in METRICS},
                    "result": result.model_dump(mode="json"),
                }
            )
        return {"study": self.study.name, "title": self.study.title, "rows": rows}


def _means(categories: Sequence[CategoryMetrics]) -> dict[str, float | None]:
    return {key: _mean([getattr(metrics, key) for metrics in categories]) for key in METRICS}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _forgetting(result: RowResult, key: str) -> float | None:
    """Mean drop of the earlier tasks; ``None`` with a single task, or if it was not measured."""
    if result.after_learning is None or result.at_end is None:
        return None
    value: Callable[[CategoryMetrics], float | None] = lambda metrics: getattr(metrics, key)  # noqa: E731
    earlier = zip(result.after_learning[:-1], result.at_end[:-1], strict=True)
    return _mean([_difference(value(before), value(after)) for before, after in earlier])


def _percent(value: float | None, delta: float | None = None) -> str:
    if value is None:
        return "–"
    text = f"{100 * value:.2f}".replace("-", "−")
    return text if delta is None else f"{text} ({100 * delta:+.2f})".replace("-", "−")


def _published(row: Row) -> str:
    figures = (row.published.image_auroc, row.published.pixel_auroc, row.published.pixel_ap)
    return "open" if None in figures else " / ".join(f"{figure:.2f}" for figure in figures)
