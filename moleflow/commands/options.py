"""Options that several subcommands share."""

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
        metavar="DIR", help="Keep patch embeddings in DIR; later runs on the same images and backbone read them."
    ),
]
Plugin = Annotated[
    str | None,
    typer.Option(metavar="MODULE", help="A module (name or .py file) that registers your backbone with timm."),
]
BackboneName = Annotated[
    str | None, typer.Option(metavar="NAME", help="A timm model with feature maps, instead of the preset's.")
]
BackboneWeights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Its weights, for machines without a model hub.")
]
ImageSize = Annotated[int | None, typer.Option(min=32, help="Side of the model's input in pixels.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over a product's images.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a step.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine, same result.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=1, envvar="MOLEFLOW_MAX_PIXELS", show_envvar=True,
        help="Largest image that is read, in pixels; the service has the same limit. [default: 40000000]",
    ),
]  # fmt: skip
Strict = Annotated[
    bool, typer.Option("--strict", help="Make every warning about the images and masks an error, before any work.")
]
FalseAlarmRate = Annotated[
    float | None, typer.Option(help="Share of good images that may be called anomalous. [default: 0.01]")
]
UnknownLimit = Annotated[
    float | None,
    typer.Option(
        help=f"Novelty score beyond which an image is of an unknown product; 0 refuses nothing. "
        f"[default: {DEFAULT_UNKNOWN_LIMIT}]"
    ),
]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that the user gave."""
    return {key: value for key, value in options.items() if value is not None}


def from_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with the home folder for a leading ``~`` in its paths: after ``--option=`` no shell puts it there."""

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        return command(**{name: _from_home(value) for name, value in values.items()})

    return run


def _from_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_home(each) for each in value]
    # pathlib's own raises where there is no such user.
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value  # noqa: PTH111
