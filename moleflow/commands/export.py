"""`moleflow export`: write a checkpoint as a folder of graphs, which is served without PyTorch."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from moleflow.commands import options

__all__ = ["export"]


def export(
    checkpoint: options.CheckpointArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist, or be empty.")],
    format_: Annotated[
        Literal["openvino", "onnx"], typer.Option("--format", help="Form of the graphs. OpenVINO starts faster.")
    ] = "openvino",
    plugin: options.Plugin = None,
) -> None:
    """Write a checkpoint as a folder that `moleflow serve`, `predict` and `inspect` take, without PyTorch.

    It holds graphs of the backbone, the router and each product's expert. Every graph is compared with PyTorch. Hidden
    products are left out. The folder appears when it is complete.
    """
    from moleflow.model.exporter.write import export_checkpoint
    from moleflow.model.store.checkpoint import Checkpoint
    from moleflow.training.progress import Reporter

    options.prepare(None, plugin)
    opened = Checkpoint.open(checkpoint)
    with Reporter().phase("products", len(opened.header.visible)) as phase:
        export_checkpoint(opened, out, format_, lambda name: phase.advance(1))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    typer.echo(f"{out}: {len(opened.header.visible)} products, {size / 1e6:.1f} MB")
