"""Rows of the ablation study with the preset main, one after another until the time is up.

The study's own runner saves each row, so the next run goes on where this one ended. Where its folder is gone, the rows
of an earlier result are given back to it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.gpu.context import Context, OutOfTimeError
from benchmarks.gpu.learning import Watch, source
from benchmarks.gpu.records import write_json
from benchmarks.shared.errors import BenchmarkError
from moleflow.training.ablation.runner import Ablation, RowResult
from moleflow.training.ablation.studies import STUDIES, Row, Study
from moleflow.training.ablation.table import StudyTable
from moleflow.training.config import Preset

__all__ = ["measure", "share_rows"]

SCHEDULE = {"folds": 1, "min_held_out": 5}
"""As ``moleflow ablate`` has it: rows are compared by figures that need no threshold."""

FIRST = ("core", "score_top_k", "subnet", "blocks", "sharing")
"""Studies in the order of their interest; the others follow. Rows of ``score_top_k`` take no training."""

RESERVE_SECONDS = 5


def measure(context: Context) -> None:
    """Run the rows that are missing."""
    given, folder = source(context), context.work / "ablations"
    if context.options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    schedule = SCHEDULE | ({"epochs": context.options.epochs} if context.options.epochs else {})
    preset = given.preset(context, "main", **schedule)
    studies = _studies(context)
    rows = share_rows([row for study in studies for row in study.rows], preset, context.options.share)
    results = folder / "results"
    _give_back(context.earlier.get("results", {}), results)
    watch = _Rows(context, results, studies, preset, given.products)
    ablation = Ablation(
        given.data,
        given.products,
        folder,
        preset,
        backbone_weights=given.weights,
        cache=context.work / "embeddings",
        reporter=watch,
    )
    try:
        ablation.run(Study("all", "Every row", rows))
    except OutOfTimeError:
        context.stopped = True
    watch.collect()


def _studies(context: Context) -> list[Study]:
    """The studies that were asked for; where everything is reduced, three rows of the first."""
    if context.reduced and not context.options.studies:
        return [Study("core", "Core components", STUDIES["core"].rows[:3])]
    wanted = context.options.studies.split(",") if context.options.studies else [*FIRST, *STUDIES]
    unknown = [name for name in wanted if name not in STUDIES]
    if unknown:
        raise BenchmarkError(f"there is no study {unknown[0]!r}; use some of {', '.join(STUDIES)}.")
    return [STUDIES[name] for name in dict.fromkeys(wanted)]


def share_rows(rows: Sequence[Row], preset: Preset, share: tuple[int, int]) -> tuple[Row, ...]:
    """Part I of N of the rows, each configuration once. Processes with one ``--work`` see each other's results."""
    distinct: dict[str, Row] = {}
    for row in rows:
        distinct.setdefault(row.resolve(preset).model_dump_json(), row)
    part, parts = share
    return tuple(distinct.values())[part - 1 :: parts]


def _give_back(earlier: Mapping[str, Any], results: Path) -> None:
    """Write rows of an earlier run where the runner looks for them."""
    for digest, row in earlier.items():
        path = results / f"{digest}.json"
        if not path.exists():
            write_json(path, row)


class _Rows(Watch):
    """Copies each row into the stage's result as soon as it is measured."""

    def __init__(
        self, context: Context, results: Path, studies: list[Study], preset: Preset, products: tuple[str, ...]
    ) -> None:
        super().__init__(context, 0 if context.reduced else RESERVE_SECONDS)
        self.results, self.products = results, products
        self.rows = [(study, row, row.resolve(preset)) for study in studies for row in study.rows]
        self._files = -1

    def with_history(self, history: Path) -> Any:
        """A plain one for the training of a row."""
        return Watch(self.context, self.reserve, history)

    def line(self, text: str) -> None:
        super().line(text)
        self.collect()
        self.check()

    def collect(self) -> None:
        """Match the saved results to the rows, and keep both."""
        files = sorted(self.results.glob("*.json"))
        if len(files) == self._files:
            return
        self._files, found = len(files), []
        for path in files:
            try:
                found.append(RowResult.model_validate_json(path.read_bytes()))
            except ValidationError:  # of another version
                continue
        found = [each for each in found if each.tasks == self.products]
        rows = []
        for study, row, preset in self.rows:
            match = next((e for e in found if (e.model, e.training) == (preset.model, preset.training)), None)
            if match is not None:
                rows.append(_entry(study, row, match))
        kept = {each.digest: json.loads(each.model_dump_json()) for each in found}
        self.context.result.update(rows=rows, total=len(self.rows), products=list(self.products), results=kept)
        self.context.keep()


def _entry(study: Study, row: Row, result: RowResult) -> dict[str, Any]:
    """One row: means over the products in fractions, parameters, and the seconds of its training."""
    document = StudyTable(study, [(row, result)]).document()["rows"][0]
    published = {key: value for key, value in document["published_percent"].items() if value is not None}
    keys = ("mean", "forgetting", "parameters_per_later_task", "train_seconds")
    return {
        "study": study.name,
        "row": row.name,
        "epochs": result.training.epochs,
        "published_percent": published,
        **{key: document[key] for key in keys},
    }
