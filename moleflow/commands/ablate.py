"""`moleflow ablate`: run one table of the ablation study."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from moleflow.training.ablation.table import StudyTable

__all__ = ["StudyName", "ablate"]


StudyName = Literal[
    "core",
    "subnet",
    "blocks",
    "sharing",
    "lora_rank",
    "lambda_logdet",
    "scale_context_kernel",
    "spatial_context_kernel",
    "tail_weight",
    "score_top_k",
    "scoring",
]
"""The tables of the ablation study; known here without loading them."""


def ablate(
    study: Annotated[StudyName, typer.Argument(metavar="STUDY", help=f"One of {', '.join(get_args(StudyName))}.")],
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder with one folder per product, each with labelled test images."),
    ],
    task: Annotated[
        list[str], typer.Option(metavar="NAME", help="A product of the sequence; repeat for more, in order.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of runs and results; all studies may share it.")],
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown, beside the published figures.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
    preset: Annotated[str, typer.Option(help="The full configuration: main, fast, small or compact.")] = "main",
    backbone: options.BackboneName = None,
    backbone_weights: options.BackboneWeights = None,
    plugin: options.Plugin = None,
    image_size: options.ImageSize = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    strict: options.Strict = False,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Train and evaluate every row of one table of the ablation study on the same sequence of products.

    Results are saved in --out as they become available. Run the command again after an interruption, or with another
    study, and only what is missing runs; the full configuration is trained once for all studies. Embeddings are
    computed once and kept in --cache (default: DIR/embeddings).
    """
    from json import dumps

    from moleflow.model.files.outputs import check_output, write_text
    from moleflow.training.ablation.runner import Ablation
    from moleflow.training.ablation.studies import STUDIES
    from moleflow.training.ablation.table import StudyTable
    from moleflow.training.config import preset as find_preset
    from moleflow.training.progress import Reporter

    options.prepare(max_pixels, plugin)
    if markdown is not None:
        check_output("the table", markdown)  # fail before the training
    reporter = Reporter()
    # Rows are compared by ranking metrics, which do not depend on thresholds. So no cross-fitting, which would take six
    # trainings instead of one, and few held-out images, which are lost to the fit.
    schedule = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "folds": 1, "min_held_out": 5}
    chosen = find_preset(preset).with_changes(
        backbone=options.given({"name": backbone, "image_size": image_size}), training=options.given(schedule)
    )
    ablation = Ablation(
        data,
        task,
        out,
        chosen,
        backbone_weights=backbone_weights,
        device=device,
        precision=precision,
        cache=cache,
        reporter=reporter,
        strict=strict,
    )
    wanted = STUDIES[study]
    with options.resumable(reporter):
        table = StudyTable(wanted, ablation.run(wanted))
    if markdown is not None:
        write_text("the table", markdown, table.markdown())
    if json:
        typer.echo(dumps(table.document(), indent=1))
    else:
        _print_table(table)


def _print_table(table: "StudyTable") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Line breaks keep the table within 80 columns.
    shown = Table(title=table.study.title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(table.headings()):
        shown.add_column(heading.replace(" ", "\n"), justify="right" if number else "left", overflow="fold")
    for cells in table.cells():
        shown.add_row(*(cell.replace(" (", "\n(") for cell in cells))
    Console().print(shown)
