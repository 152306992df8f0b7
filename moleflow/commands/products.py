"""`moleflow remove`, `unhide` and `rename`: change which products a checkpoint has, and their names."""

from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands import options

if TYPE_CHECKING:
    from moleflow.model.store.checkpoint import Checkpoint

__all__ = ["remove", "rename", "unhide"]

_Products = Annotated[list[str], typer.Argument(help="Names of products.", metavar="PRODUCT...")]


def remove(
    checkpoint: options.CheckpointArgument,
    products: _Products,
    hide: Annotated[
        bool, typer.Option("--hide", help="Keep them in the file, without a part in prediction; the first needs this.")
    ] = False,
) -> None:
    """Remove products from a checkpoint. The others stay as they are, bit for bit."""
    from moleflow.model.store.editing import hide_products, remove_products

    changed = hide_products(checkpoint, products) if hide else remove_products(checkpoint, products)
    _report("hid" if hide else "removed", products, changed)


def unhide(checkpoint: options.CheckpointArgument, products: _Products) -> None:
    """Let hidden products take part in prediction again."""
    from moleflow.model.store.editing import hide_products

    _report("no longer hides", products, hide_products(checkpoint, products, hidden=False))


def rename(
    checkpoint: options.CheckpointArgument,
    product: Annotated[str, typer.Argument(help="Its name so far.", metavar="OLD")],
    name: Annotated[str, typer.Argument(help="Its new name.", metavar="NEW")],
) -> None:
    """Give a product of a checkpoint another name; nothing else changes."""
    from moleflow.model.store.editing import rename_product

    _report("renamed", [product], rename_product(checkpoint, product, name))


def _report(what: str, products: list[str], changed: "Checkpoint") -> None:
    visible = ", ".join(task.name for task in changed.header.visible)
    size = changed.path.stat().st_size / 1e6
    typer.echo(f"{what} {', '.join(products)}; {changed.path.name} ({size:.1f} MB) now has {visible}")
