"""`moleflow ablate`: run one table of the ablation study."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands.options import (
    BackboneName,
    BackboneWeights,
    BatchSize,
    Cache,
    Device,
    Epochs,
    ImageSize,
    MaxPixels,
    Plugin,
    PrecisionName,
    PrecisionOption,
    Seed,
    Strict,
    given,
)

if TYPE_CHECKING:
    from moleflow.training.ablation.table import StudyTable

__all__ = ["StudyName", "ablate"]


class StudyName(StrEnum):
    """The tables of the ablation study."""

    CORE = "core"
    SUBNET = "subnet"
    BLOCKS = "blocks"
    SHARING = "sharing"
    LORA_RANK = "lora_rank"
    LAMBDA_LOGDET = "lambda_logdet"
    SCALE_CONTEXT_KERNEL = "scale_context_kernel"
    SPATIAL_CONTEXT_KERNEL = "spatial_context_kernel"
    TAIL_WEIGHT = "tail_weight"
    SCORE_TOP_K = "score_top_k"
    SCORING = "scoring"


def ablate(
    study: Annotated[StudyName, typer.Argument(metavar="STUDY", help=f"One of {', '.join(StudyName)}.")],
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
    backbone: BackboneName = None,
    backbone_weights: BackboneWeights = None,
    plugin: Plugin = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    cache: Cache = None,
    strict: Strict = False,
    max_pixels: MaxPixels = None,
    device: Device = "auto",
    precision: PrecisionOption = PrecisionName.AUTO,
) -> None:
    """Train and evaluate every row of one table of the ablation study on the same sequence of products.

    Results are saved in --out as they become available. Run the command again after an interruption, or with another
    study, and only what is missing runs; the full configuration is trained once for all studies. Embeddings are
    computed once and kept in --cache (default: DIR/embeddings).
    """
    from json import dumps

    from moleflow.model.features.backbone import import_plugin
    from moleflow.model.files.outputs import check_output, write_text
    from moleflow.model.images.decode import MAX_PIXELS, limit_pixels
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.training.ablation.runner import Ablation
    from moleflow.training.ablation.studies import STUDIES
    from moleflow.training.ablation.table import StudyTable
    from moleflow.training.config import preset as find_preset
    from moleflow.training.progress import Reporter

    configure_threads()
    limit_pixels(max_pixels or MAX_PIXELS)
    if markdown is not None:
        check_output("the table", markdown)  # fail before the training
    if plugin:
        import_plugin(plugin)
    reporter = Reporter()
    # Rows are compared by ranking metrics, which do not depend on thresholds. So no cross-fitting, which would take six
    # trainings instead of one, and few held-out images, which are lost to the fit.
    schedule = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "folds": 1, "min_held_out": 5}
    chosen = find_preset(preset).with_changes(
        backbone=given({"name": backbone, "image_size": image_size}), training=given(schedule)
    )
    ablation = Ablation(
        data,
        task,
        out,
        chosen,
        backbone_weights=backbone_weights,
        device=device,
        precision=precision.value,
        cache=cache,
        reporter=reporter,
        strict=strict,
    )
    wanted = STUDIES[study.value]
    try:
        table = StudyTable(wanted, ablation.run(wanted))
    except KeyboardInterrupt:
        reporter.line("stopped; run the same command again to continue from the last complete epoch")
        raise typer.Exit(130) from None
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
