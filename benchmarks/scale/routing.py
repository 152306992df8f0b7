"""How often does the router find the right product among 1,000 and 10,000?

    python -m benchmarks routing_scale DATA [--products 10 100 1000 10000] [--output FILE.json]

Nobody has images of 10,000 products, so products are drawn after the real ones in DATA (preset ``small``): the
descriptors of a drawn product vary around its mean as those of a real product, chosen at random, and the means are
drawn in two ways, which are bounds. *Alike*: as far apart as the real means, and only in the directions in which those
differ, of which ten products have nine. *Diverse*: with the same variance, spread over all directions.

Prototypes are fitted to 30 drawn images each, without altered copies; other drawn images are routed.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.shared.command import add_output, finish, make_parser, positive, prepare
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.routing.router import Prototype, Router, image_descriptor
from moleflow.training.config import PRESETS
from moleflow.training.data.datasets import discover, load_category
from moleflow.training.data.white_levels import Reader
from moleflow.training.embeddings.extraction import extract
from moleflow.training.report.markdown import markdown_table

__all__ = ["main"]

TRAIN_IMAGES = 30
"""Drawn images of each product that its prototype is fitted to."""

MOST_TESTED = 4000
"""Images that are routed, spread over all products."""

REAL_IMAGES = 100
"""Images read of each real product, at most."""

CONFIG = PRESETS["small"].model


class Real(NamedTuple):
    """The real products: means ``(k, D)``, and of each the factor ``(n, D)`` whose rows, weighted by independent
    standard normal numbers, add up to a deviation from the mean."""

    means: torch.Tensor
    factors: list[torch.Tensor]


def read(data: Path) -> Real:
    """Descriptors of the good images of all products below ``data``."""
    extractor = FeatureExtractor(CONFIG, Backbone.pretrained(CONFIG.backbone))
    means, factors = [], []
    for name in discover(data):
        paths = load_category(data, name, check=False).train[:REAL_IMAGES]
        parts = extract(extractor, list(paths), Reader(None))
        descriptors = torch.cat([image_descriptor(features.embeddings) for _, features in parts])
        means.append(descriptors.mean(0))
        factors.append((descriptors - means[-1]) / max(len(descriptors) - 1, 1) ** 0.5)
    return Real(torch.stack(means), factors)


def draw_means(real: Real, count: int, generator: torch.Generator, *, diverse: bool) -> torch.Tensor:
    """Means ``(count, D)`` of drawn products."""
    centre, (products, dim) = real.means.mean(0), real.means.shape
    deviations = (real.means - centre) / max(products - 1, 1) ** 0.5
    if diverse:
        scale = (deviations.square().sum() / dim).sqrt()
        return centre + scale * torch.randn(count, dim, generator=generator)
    return centre + torch.randn(count, products, generator=generator) @ deviations


def measure(real: Real, count: int, *, diverse: bool) -> dict[str, Any]:
    """Route drawn images among ``count`` drawn products."""
    generator = torch.Generator().manual_seed(count)
    means = draw_means(real, count, generator, diverse=diverse)
    kinds = torch.randint(len(real.factors), (count,), generator=generator).tolist()

    def images(product: int, number: int) -> torch.Tensor:
        factor = real.factors[kinds[product]]
        return means[product] + torch.randn(number, len(factor), generator=generator) @ factor

    started = time.perf_counter()
    router = Router([Prototype.fit(images(product, TRAIN_IMAGES), CONFIG.router) for product in range(count)])
    built = time.perf_counter() - started
    tested = torch.arange(count).repeat(-(-MOST_TESTED // count))[:MOST_TESTED] if count < MOST_TESTED else None
    truth = torch.randperm(count, generator=generator)[:MOST_TESTED] if tested is None else tested
    descriptors = torch.cat([images(product, 1) for product in truth.tolist()])
    started, right, beyond = time.perf_counter(), 0, 0
    for rows in torch.arange(len(truth)).split(8):
        distances, ratios = router(descriptors[rows])
        found = distances.argmin(1)
        right += int((found == truth[rows]).sum())
        beyond += int((ratios[torch.arange(len(rows)), truth[rows]] > 1).sum())
    seconds = time.perf_counter() - started
    return {
        "products": count,
        "means": "diverse" if diverse else "alike",
        "images": len(truth),
        "correct": right / len(truth),
        "nearer_to_another": beyond / len(truth),
        "ms": 1000 * seconds / len(truth),
        "build_seconds": built,
        "router_bytes": sum(value.numel() * value.element_size() for value in router.buffers()),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    heads = ["products", "means", "routed correctly", "beyond the gap to the next", "router, ms", "router, MB"]
    return markdown_table(
        heads,
        [
            [
                f"{row['products']:,}",
                row["means"],
                f"{100 * row['correct']:.2f} %",
                f"{100 * row['nearer_to_another']:.2f} %",
                f"{row['ms']:.2f}",
                f"{row['router_bytes'] / 1e6:.1f}",
            ]
            for row in rows
        ],
    )


@torch.inference_mode()
def main(arguments: Sequence[str]) -> int:
    parser: argparse.ArgumentParser = make_parser("routing_scale", __doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of real products")
    parser.add_argument("--products", type=positive, nargs="+", default=[10, 100, 1000, 10_000], metavar="N")
    add_output(parser)
    options = parser.parse_args(arguments)
    prepare()
    real = read(options.data)
    rows = [measure(real, count, diverse=diverse) for diverse in (False, True) for count in options.products]
    return finish(options.output, {"real_products": len(real.means), "rows": rows}, markdown(rows))
