"""`moleflow merge`: pool the products of several checkpoints in one."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["merge"]


def merge(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT…", help="Two checkpoints or more, learned on the same base.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; may be one of those that are merged.")
    ],
) -> None:
    """Pool the products of several checkpoints with the same base in one, in the order given, bit for bit.

    Sites that start from a copy of one checkpoint learn apart, and share their experts.
    """
    from moleflow.model.store.merging import merge_checkpoints

    merged = merge_checkpoints(checkpoints, output)
    for name in merged.recalibrated:
        typer.echo(
            f"warning: {name} was recalibrated, or got another area, in one of the files; the first file's thresholds "
            "and area are kept",
            err=True,
        )
    count, size = len(merged.checkpoint.header.tasks), output.stat().st_size / 1e6
    once = f"; {len(set(merged.shared))} in several files are kept once" if merged.shared else ""
    typer.echo(f"{output.name} ({size:.1f} MB) has {count:,} products{once}")
