"""`moleflow demo`: train and serve on bundled images, in under two minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moleflow.service.engine.predictor import Predictor

__all__ = ["demo"]

SCHEDULE = {"epochs": 5, "batch_size": 4, "folds": 1}
"""Takes under two minutes on two cores: small batches, for many steps on few images, and no cross-fitting."""


def demo(
    directory: Annotated[Path, typer.Option(metavar="DIR", help="Folder for images and checkpoint.")] = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve, or print the checkpoint's path.")] = True,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 lets the system choose. [default: 8000]")] = None,
) -> None:
    """Create images of three products, learn them one after another, and serve the checkpoint.

    Brick, grass and gravel are cropped from photographs that come with scikit-image; defects are drawn on test images.
    The next run reuses the checkpoint and serves at once.
    """
    from moleflow.model.files.outputs import check_output
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.model.store.checkpoint import Checkpoint
    from moleflow.service.settings import load_settings
    from moleflow.training.config import preset
    from moleflow.training.continual.sequence import train_tasks
    from moleflow.training.data.demo import PRODUCTS, make_demo_data, make_samples

    configure_threads()
    checkpoint = directory / "demo.safetensors"
    # Settings first, so that an invalid port fails before the training.
    settings = load_settings(checkpoint=checkpoint, host=host, port=port) if serve else None
    check_output("the checkpoint", checkpoint)
    data = make_demo_data(directory / "images")
    chosen = preset("small").with_changes(backbone={}, training=SCHEDULE)
    known = {task.name for task in Checkpoint.open(checkpoint).header.tasks} if checkpoint.exists() else set()
    missing = [name for name in PRODUCTS if name not in known]
    if missing:
        train_tasks(data, missing, checkpoint, preset=chosen)
    if settings is None:
        typer.echo(str(checkpoint))
        return
    from moleflow.service.server import serve as run

    settings = settings.model_copy(update={"samples": make_samples(data, directory / "samples")})
    example = data / PRODUCTS[0] / "test" / "scratch" / "000.png"
    run(settings, on_ready=lambda url, predictor: _print_ready(url, predictor, example))


def _print_ready(url: str, predictor: "Predictor", example: Path) -> None:
    products = ", ".join(task.name for task in predictor.tasks)
    typer.echo(
        f"\nServing {products} from {predictor.checkpoint.name}\n\n"
        f"  page   {url}\n"
        f"  try    curl -F file=@{example} '{url}/predict?map=none'\n\n"
        "Ctrl-C stops it."
    )
