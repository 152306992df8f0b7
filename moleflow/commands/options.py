"""Options that several subcommands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Cache",
    "CheckpointArgument",
    "Device",
    "FalseAlarmRate",
    "Plugin",
    "PrecisionName",
    "PrecisionOption",
    "UnknownLimit",
]


class PrecisionName(StrEnum):
    """Types of the matrix products."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint that `moleflow train` wrote.", metavar="CHECKPOINT")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. auto takes CUDA when there.")]
PrecisionOption = Annotated[
    PrecisionName, typer.Option(help="Type of the matrix products. auto takes bf16 where the hardware has it.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Keep patch embeddings in DIR; later runs on the same pictures and backbone read them."
    ),
]
Plugin = Annotated[
    str | None,
    typer.Option(metavar="MODULE", help="A module (name or .py file) that registers your backbone with timm."),
]
FalseAlarmRate = Annotated[
    float | None, typer.Option(help="Share of good pictures that may be called anomalous. [default: 0.01]")
]
UnknownLimit = Annotated[
    float | None,
    typer.Option(
        help="Share of the way to the nearest other product beyond which a picture is of an unknown product; 0 refuses "
        "nothing. [default: 0.43]"
    ),
]
