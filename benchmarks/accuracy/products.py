"""A product's images for trials: to fit to, held out, and pseudo-defects made from the held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.pseudo_defects import SHARP, make_pseudo
from moleflow.training.config import Preset
from moleflow.training.data.datasets import Category, Sample, load_category
from moleflow.training.fit.cross_fitting import split

__all__ = ["Product", "load_product"]


@dataclass(frozen=True)
class Product:
    """A product's images: those to fit to, those held out, and the pseudo-defects made from the held-out ones."""

    category: Category
    fit: tuple[Path, ...]
    held_out: tuple[Path, ...]
    pseudo: tuple[Sample, ...]


def load_product(data: Path, name: str, out: Path, start: Preset, most: int, kinds: Sequence[str] = SHARP) -> Product:
    """Split as training does, keep at most ``most`` images to fit to, and make pseudo-defects of the given kinds."""
    category = load_category(data, name)
    parts = split(name, len(category.train), start.training)
    held_out = tuple(category.train[row] for row in parts.folds[0])
    fit = tuple(category.train[row] for row in parts.fit)
    fit = fit[:: -(-len(fit) // most)] if len(fit) > most else fit
    made = make_pseudo(held_out, out / "pseudo" / name, name, kinds)
    return Product(category, fit, held_out, tuple(Sample(path, "pseudo", (mask,)) for path, mask in made))
