"""`moleflow inspect`: show the contents of a checkpoint, or of an exported folder."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from moleflow.commands import options
from moleflow.commands.area import described

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from moleflow.model.config import FlowConfig, ScoringConfig
    from moleflow.model.exported.folder import ExportedFolder
    from moleflow.model.store.checkpoint import Checkpoint
    from moleflow.model.store.header import Header
    from moleflow.model.verdict.results import TaskInfo

__all__ = ["inspect"]


_COLUMNS: "dict[str, JustifyMethod]" = {
    "": "right",
    "product": "left",
    "images": "right",
    "epochs": "right",
    "threshold": "right",
    "params": "right",
    "MB": "right",
    "learned": "left",
    "SHA-256": "left",
}
"""Columns of the product table, which fits into 80 characters."""


def inspect(
    checkpoint: options.CheckpointOrFolder,
    json: Annotated[bool, typer.Option("--json", help="Print the header as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and verify the digests.")] = False,
) -> None:
    """Show the products, sizes, configuration, preprocessing and digests of a checkpoint or an exported folder."""
    from moleflow.model.exported.folder import ExportedFolder, is_exported

    if is_exported(checkpoint):
        folder = ExportedFolder.open(checkpoint)
        if verify:
            folder.verify()
        header, shown = folder.manifest.header, _of_folder(folder)
    else:
        from moleflow.model.store.checkpoint import Checkpoint

        opened = Checkpoint.open(checkpoint)
        if verify:
            opened.verify()
        header, shown = opened.header, _of_checkpoint(opened)
    if json:
        typer.echo(header.model_dump_json(indent=2))
        return
    _print_report(header, shown, verified=verify)


class _Shown(NamedTuple):
    """What a checkpoint and an exported folder show each in its own way: the lines about the file, the digest, and
    the bytes of each product. Of a checkpoint also the bytes of the backbone, and parameters and bytes of the base."""

    place: dict[str, str]
    digest: str
    product_bytes: list[int]
    backbone_bytes: int
    base: str


def _of_checkpoint(opened: "Checkpoint") -> _Shown:
    sizes = opened.section_bytes()
    parameters = opened.section_parameters().get("base", 0)  # separate bases are counted with their tasks
    header = opened.header
    return _Shown(
        {"file": f"{opened.path} ({opened.path.stat().st_size / 1e6:.1f} MB, format {header.format_version})"},
        opened.info.digest,
        [sum(sizes[f"tasks.{task.index}.{part}"] for part in ("profile", "expert")) for task in header.tasks],
        sizes["backbone"],
        f"{parameters / 1e6:.2f} M parameters, {sizes.get('base', 0) / 1e6:.1f} MB",
    )


def _of_folder(folder: "ExportedFolder") -> _Shown:
    from moleflow.model.exported.manifest import expert_name, graph_files

    manifest = folder.manifest

    def size(graph: str) -> int:
        return sum(manifest.files[name].bytes for name in graph_files(graph, manifest.graphs))

    total = sum(entry.bytes for entry in manifest.files.values())
    return _Shown(
        {
            "folder": f"{folder.path} ({total / 1e6:.1f} MB, graphs for {manifest.graphs}, format "
            f"{manifest.format_version})",
            "from": f"{manifest.checkpoint.name}, digest {manifest.checkpoint.digest}",
        },
        folder.info.digest,
        [size(expert_name(task.index)) for task in manifest.header.tasks],
        size("features"),
        "merged into every expert",
    )


def _print_report(header: "Header", shown: _Shown, *, verified: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    config = header.config
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    network, flow, input_ = config.backbone, config.flow, header.preprocessing
    strides = ", ".join(map(str, network.strides))
    rows = {
        **shown.place,
        "digest": shown.digest + (" (all tensors verified)" if verified else ""),
        "preset": header.preset,
        "backbone": f"{network.name}, strides {strides}, embeddings of {network.embedding_dim} "
        f"({shown.backbone_bytes / 1e6:.1f} MB, {header.backbone_sha256[:12]}…)",
        "input": f"{input_.image_size} × {input_.image_size}, {input_.interpolation}, "
        f"mean {_listed(input_.mean)}, std {_listed(input_.std)}",
        "flow": f"{flow.coupling_blocks} MoLE + {flow.dia_blocks} DIA blocks, {_subnet(flow)}, scale context "
        f"{flow.scale_context_kernel or 'none'}, spatial context {flow.spatial_context_kernel or 'none'}, "
        f"adapter {flow.adapter}, experts stored in {config.expert_dtype}",
        "base": f"{flow.sharing}, {shown.base}, {header.base_sha256[:12]}…",
        "score": f"mean of the {config.score_top_k} highest patches, {_scoring(config.scoring)}",
    }
    for key, value in rows.items():
        facts.add_row(key, escape(value))
    tasks = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, side in _COLUMNS.items():
        tasks.add_column(name, justify=side, no_wrap=True)
    for task in header.tasks:
        tasks.add_row(
            str(task.index),
            escape(task.name) + (" (hidden)" if task.hidden else ""),
            _images(task),
            str(task.epochs),
            f"{task.threshold:.2f}",
            f"{task.parameters / 1e6:.2f} M",
            f"{shown.product_bytes[task.index] / 1e6:.2f}",
            f"{task.learned_at:%Y-%m-%d}",
            task.sha256[:8],
        )
    console = Console()
    console.print(facts)
    console.print(tasks)
    for task in header.tasks:
        if task.inspected_area is not None:
            console.print(escape(f"{task.name} inspects {described(task)}"), highlight=False)
    if header.tasks:
        rate = header.tasks[0].false_alarm_rate
        console.print(
            "images: training images, + held-out images or × calibration folds; "
            f"thresholds at a false-positive rate of {rate:g}; other rates can be requested",
            style="dim",
            highlight=False,
        )


def _images(task: "TaskInfo") -> str:
    return f"{task.train_images} + {task.held_out_images}" if task.folds == 1 else f"{task.train_images} × {task.folds}"


def _subnet(flow: "FlowConfig") -> str:
    return f"rank {flow.lora_rank}" if flow.subnet == "lora" else "separate dense layers per task"


def _scoring(scoring: "ScoringConfig") -> str:
    if scoring.cap is None:
        return "by NLL"
    if scoring.memory is None:
        return f"by NLL; map capped at {scoring.cap:g} standard deviations"
    kept = f"{scoring.memory.prototypes} patches of {scoring.memory.dim} components"
    return f"by a memory of up to {kept}, and {scoring.flow_weight:g} × NLL capped at {scoring.cap:g}"


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
