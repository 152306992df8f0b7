"""Options shared by several subcommands."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moleflow.model import config

if TYPE_CHECKING:
    from moleflow.training.progress import Reporter

CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint written by `moleflow train`.", metavar="CHECKPOINT")
]
CheckpointOrFolder = Annotated[
    Path, typer.Argument(help="A checkpoint, or a folder written by `moleflow export`.", metavar="CHECKPOINT")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. auto uses CUDA if available.")]
Precision = Annotated[
    config.Precision, typer.Option(help="Precision of matrix products. auto uses bf16 where the hardware supports it.")
]
Engine = Annotated[
    config.Engine,
    typer.Option(
        envvar="MOLEFLOW_ENGINE",
        show_envvar=True,
        help="What computes. auto takes OpenVINO for the features where it is installed, on a CPU in fp32.",
    ),
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
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: HOST:PORT of its head node, auto for the one that runs here, or local to start "
        "one on this machine.",
    ),
]
WorkerCpus = Annotated[float, typer.Option(min=0, help="With --ray: processors of each worker.")]
WorkerGpus = Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each worker; 0.25 for four on a GPU.")]
FalseAlarmRate = Annotated[
    float | None, typer.Option(help="Fraction of good images that may be called anomalous. [default: 0.01]")
]
UnknownLimit = Annotated[
    float | None,
    typer.Option(
        help=f"Novelty score above which the product counts as unknown; 0 accepts every image. "
        f"[default: {config.DEFAULT_UNKNOWN_LIMIT}]"
    ),
]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the user gave, those that are not ``None``."""
    return {key: value for key, value in options.items() if value is not None}


def prepare(max_pixels: int | None, plugin: str | None = None, *, pytorch: bool = True) -> None:
    """Set this process's pixel limit and, with ``pytorch``, its threads; import the plugin."""
    from moleflow.model.images.decode import MAX_PIXELS, limit_pixels
    from moleflow.model.runtime.threads import configure_threads

    if pytorch:
        configure_threads()
    limit_pixels(max_pixels or MAX_PIXELS)
    if plugin:
        from moleflow.model.features.backbone import import_plugin

        import_plugin(plugin)


@contextlib.contextmanager
def resumable(reporter: "Reporter") -> Iterator[None]:
    """Turn an interrupt into exit status 130 and the advice to run the command again."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.line("stopped; run the same command again to continue from the last complete epoch")
        raise typer.Exit(130) from None


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
