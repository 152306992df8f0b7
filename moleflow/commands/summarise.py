"""`moleflow summarise`: mean and standard deviation over several evaluations."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["summarise"]

WIDTH_WITHOUT_TERMINAL = 200
"""Width of the tables in a file or pipe."""


def summarise(
    evaluations: Annotated[
        list[Path], typer.Argument(metavar="EVALUATION…", help="Files written by `moleflow evaluate --json`.")
    ],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the summary as JSON.")] = None,
) -> None:
    """Show mean and standard deviation of each metric over evaluations of several checkpoints, such as three seeds.

    All evaluations must cover the same products and images.
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
