"""`moleflow summarise`: mean and spread of several evaluations, such as those of three seeds."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["summarise"]

WIDTH_WITHOUT_TERMINAL = 200
"""Columns of the tables when they go to a file or a pipe."""


def summarise(
    evaluations: Annotated[
        list[Path], typer.Argument(metavar="EVALUATION…", help="Files that `moleflow evaluate --json` wrote.")
    ],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the summary as JSON.")] = None,
) -> None:
    """Give mean and standard deviation of each figure over evaluations of several checkpoints, such as three seeds.

    All must have been measured on the same products and images.
    """
    from rich.console import Console

    from moleflow.model.files.outputs import check_output
    from moleflow.training.evaluation.records import read_evaluation, write_json
    from moleflow.training.evaluation.seeds import summarise as compute
    from moleflow.training.report.tables import summary_tables

    if json:
        check_output("the summary", json, inputs=evaluations)
    summary = compute([read_evaluation(path) for path in evaluations])
    if json:
        write_json("the summary", json, summary)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    for table in summary_tables(summary):
        console.print(table)
