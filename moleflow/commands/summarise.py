"""`moleflow summarise`: mean and standard deviation over several evaluations."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["summarise"]


def summarise(
    evaluations: Annotated[
        list[Path], typer.Argument(metavar="EVALUATION…", help="Files written by `moleflow evaluate --json`.")
    ],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the summary as JSON.")] = None,
) -> None:
    """Show mean and standard deviation of each metric over evaluations of several checkpoints, such as three seeds.

    All evaluations must cover the same products and images.
    """
    from moleflow.model.files.outputs import check_output
    from moleflow.training.evaluation.records import read_evaluation, write_json
    from moleflow.training.evaluation.seeds import summarise as compute
    from moleflow.training.report.tables import print_tables, summary_tables

    if json:
        check_output("the summary", json, inputs=evaluations)
    summary = compute([read_evaluation(path) for path in evaluations])
    if json:
        write_json("the summary", json, summary)
    print_tables(summary_tables(summary))
