"""`moleflow inspect`: show the contents of a checkpoint."""

from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from moleflow.model.config import FlowConfig, ScoringConfig
    from moleflow.model.store.checkpoint import Checkpoint
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
    checkpoint: options.CheckpointArgument,
    json: Annotated[bool, typer.Option("--json", help="Print the header as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all tensors and verify their digests.")] = False,
) -> None:
    """Show a checkpoint's products, sizes, configuration, preprocessing and digests."""
    from moleflow.model.store.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    if verify:
        opened.verify()
    if json:
        typer.echo(opened.header.model_dump_json(indent=2))
        return
    _print_report(opened, verified=verify)


def _print_report(opened: "Checkpoint", *, verified: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    header, config = opened.header, opened.header.config
    sizes = opened.section_bytes()
    base_parameters = opened.section_parameters().get("base", 0)  # separate bases are counted with their tasks
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    network, flow, input_ = config.backbone, config.flow, header.preprocessing
    strides = ", ".join(map(str, network.strides))
    rows = {
        "file": f"{opened.path} ({opened.path.stat().st_size / 1e6:.1f} MB, format {header.format_version})",
        "digest": opened.info.digest + (" (all tensors verified)" if verified else ""),
        "preset": header.preset,
        "backbone": f"{network.name}, strides {strides}, embeddings of {network.embedding_dim} "
        f"({sizes['backbone'] / 1e6:.1f} MB, {header.backbone_sha256[:12]}…)",
        "input": f"{input_.image_size} × {input_.image_size}, {input_.interpolation}, "
        f"mean {_listed(input_.mean)}, std {_listed(input_.std)}",
        "flow": f"{flow.coupling_blocks} MoLE + {flow.dia_blocks} DIA blocks, {_subnet(flow)}, scale context "
        f"{flow.scale_context_kernel or 'none'}, spatial context {flow.spatial_context_kernel or 'none'}, "
        f"adapter {flow.adapter}, experts stored in {config.expert_dtype}",
        "base": f"{flow.sharing}, {base_parameters / 1e6:.2f} M parameters, {sizes.get('base', 0) / 1e6:.1f} MB, "
        f"{header.base_sha256[:12]}…",
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
            f"{_bytes_of(task, sizes) / 1e6:.2f}",
            f"{task.learned_at:%Y-%m-%d}",
            task.sha256[:8],
        )
    console = Console()
    console.print(facts)
    console.print(tasks)
    if header.tasks:
        rate = header.tasks[0].false_alarm_rate
        console.print(
            "images: training images, + held-out images or × calibration folds; "
            f"thresholds at a false-positive rate of {rate:g}; other rates can be requested",
            style="dim",
            highlight=False,
        )


def _bytes_of(task: "TaskInfo", sizes: dict[str, int]) -> int:
    return sum(sizes[f"tasks.{task.index}.{part}"] for part in ("profile", "expert"))


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
