"""Options shared by several subcommands."""

import functools
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT

__all__ = [
    "BackboneName",
    "BackboneWeights",
    "BatchSize",
    "Cache",
    "CheckpointArgument",
    "Device",
    "Epochs",
    "FalseAlarmRate",
    "ImageSize",
    "MaxPixels",
    "Plugin",
    "PrecisionName",
    "PrecisionOption",
    "Seed",
    "Strict",
    "UnknownLimit",
    "from_home",
    "given",
]


class PrecisionName(StrEnum):
    """Precision of matrix products."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint written by `moleflow train`.", metavar="CHECKPOINT")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. auto uses CUDA if available.")]
PrecisionOption = Annotated[
    PrecisionName, typer.Option(help="Precision of matrix products. auto uses bf16 where the hardware supports it.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Cache patch embeddings in DIR, for later runs with the same images and backbone."
    ),
]
Plugin = Annotated[
    str | None,
    typer.Option(metavar="MODULE", help="A module (name or .py file) that registers a backbone with timm."),
]
BackboneName = Annotated[
    str | None, typer.Option(metavar="NAME", help="A timm model with feature maps, instead of the preset's backbone.")
]
BackboneWeights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of the backbone, for machines without access to a hub.")
]
ImageSize = Annotated[int | None, typer.Option(min=32, help="Side of the model's input in pixels.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs per product.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per training step.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed; results repeat on the same machine.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        envvar="MOLEFLOW_MAX_PIXELS",
        show_envvar=True,
        help="Maximum image size in pixels; the service has the same limit. [default: 40000000]",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Treat warnings about images and masks as errors.")]
FalseAlarmRate = Annotated[
    float | None, typer.Option(help="Fraction of good images that may be called anomalous. [default: 0.01]")
]
UnknownLimit = Annotated[
    float | None,
    typer.Option(
        help=f"Novelty score above which the product counts as unknown; 0 accepts every image. "
        f"[default: {DEFAULT_UNKNOWN_LIMIT}]"
    ),
]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user gave, those that are not ``None``."""
    return {key: value for key, value in options.items() if value is not None}


def from_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with a leading ``~`` expanded in its paths, which shells do not do after ``--option=``."""

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        return command(**{name: _from_home(value) for name, value in values.items()})

    return run


def _from_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_home(each) for each in value]
    # Path.expanduser raises for unknown users.
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value  # noqa: PTH111
