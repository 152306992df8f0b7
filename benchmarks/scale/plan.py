"""What do 1,000 or 100,000 products and 10,000 images a second need? Arithmetic on measured costs, and a simulation.

    python -m benchmarks scale_plan [--products 1000 100000] [--images 10000] [--output FILE.json]

The costs of one product and of one image are measured figures (``MEASURED``; the pages of docs/results say how). How
often an image's expert is not among those that a replica keeps depends on which products come: that is simulated, with
replicas that keep the experts used last, for three kinds of traffic and two ways to spread it.
"""

import argparse
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.shared.command import add_output, finish, make_parser, positive
from moleflow.training.report.markdown import markdown_table

__all__ = ["main"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs on one kind of machine, preset ``fast``.

    ``miss_seconds`` is what reading an expert takes at least; ``machine_price`` is no measurement but an example, in
    dollars an hour.
    """

    name: str
    train_seconds: float
    images_per_second: float
    miss_seconds: float
    machine_price: float


MEASURED = (
    # README.md: a product of 31 images; docs/results/speed.md, engines: batches of 8 with ``auto``, and ``first`` less
    # ``prediction``, on an AMD EPYC.
    Costs("two CPU cores", 54.0, 5.3, 0.093, 0.10),
    # docs/results/gpu.md: products of 230 images; JPEG over HTTP, in eight processes beside 16 processors.
    # docs/architecture.md: an expert read, and its digest.
    Costs("H100, the service", 7.5, 807.0, 0.007, 3.0),
    # The same without HTTP: batches of 64, products mixed.
    Costs("H100, the model alone", 7.5, 3431.0, 0.007, 3.0),
)

PRODUCT_BYTES, BACKBONE_BYTES = 4.0e6, 130e6
"""Of a checkpoint of ``fast`` (docs/results/index.md; 4.13 GB for 1,001 products)."""

FILE_PRODUCTS = 5_000
"""Products of ``fast`` that fit into the table of one file: 18.6 of 100 MB for 1,000 (docs/architecture.md)."""

LOAD_SECONDS, LOAD_PER_PRODUCT = 1.0, 0.0013
"""Start of a process, docs/results/scale.md: 1.04 s with 10 products and 2.30 s with 1,000."""

REPLICA_BYTES, MERGED_BYTES, PROFILE_BYTES = 1.05e9, 6e6, 90e3
"""Resident memory of a replica on a CPU: with one product, per merged expert, and per further product (record, table,
prototype). ``python -m benchmarks scale --preset fast``, 27 November 2026."""

IMAGE_BYTES = 500e3
"""A JPEG of two megapixels."""

GOAL_HOURS = 24
"""Time in which all products are to be learned."""

KEPT = 32
"""Experts that a replica keeps."""

Traffic = Literal["uniform", "zipf", "lines"]
Spreading = Literal["any replica", "by product"]

LINES, RUN = 200, 2000
"""Production lines, each of which makes so many parts of a product before the next product."""


def traffic(kind: Traffic, products: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """The product of each image, in order of arrival ``(images,)``."""
    if kind == "uniform":
        return rng.integers(products, size=images)
    if kind == "zipf":
        weights = 1 / np.arange(1, products + 1)
        return rng.choice(products, size=images, p=weights / weights.sum())
    return np.fromiter(_lines(products, images, rng), int, images)


def _lines(products: int, images: int, rng: np.random.Generator) -> Iterator[int]:
    """Lines send a part in turn, and change their product at times of their own."""
    current = rng.integers(products, size=LINES)
    left = rng.integers(1, RUN, size=LINES)
    for number in range(images):
        line = number % LINES
        if left[line] == 0:
            current[line], left[line] = rng.integers(products), RUN
        left[line] -= 1
        yield int(current[line])


def misses(products: np.ndarray, replicas: int, spreading: Spreading, rng: np.random.Generator) -> float:
    """The fraction of images whose expert was not kept; the first half of them only fills the replicas."""
    kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(replicas)]
    chosen = rng.integers(replicas, size=len(products)) if spreading == "any replica" else products % replicas
    missed, half = 0, len(products) // 2
    for number, (product, replica) in enumerate(zip(products.tolist(), chosen.tolist(), strict=True)):
        cache = kept[replica]
        if product in cache:
            cache.move_to_end(product)
            continue
        missed += number >= half
        cache[product] = None
        if len(cache) > KEPT:
            cache.popitem(last=False)
    return missed / (len(products) - half)


def simulate(products: int, replicas: Sequence[int], images: int) -> list[dict[str, Any]]:
    """Misses for each kind of traffic, way of spreading and number of replicas."""
    rows: list[dict[str, Any]] = []
    kinds: tuple[Traffic, ...] = ("uniform", "zipf", "lines")
    ways: tuple[Spreading, ...] = ("any replica", "by product")
    for kind in kinds:
        for count in replicas:
            rng = np.random.default_rng(0)
            arriving = traffic(kind, products, images, rng)
            rates: dict[str, float] = {way: misses(arriving, count, way, rng) for way in ways}
            rows.append({"traffic": kind, "replicas": count} | rates)
    return rows


def plan(products: int, rate: float, costs: Costs) -> dict[str, Any]:
    """What so many products and images a second take of machines like these."""
    files = math.ceil(products / FILE_PRODUCTS)
    # Each file needs replicas of its own; images are spread evenly over the files.
    replicas = files * math.ceil(rate / files / costs.images_per_second)
    in_file = min(products, FILE_PRODUCTS)
    return {
        "machine": costs.name,
        "products": products,
        "files": files,
        "bytes": files * BACKBONE_BYTES + products * PRODUCT_BYTES,
        "machine_hours_to_learn": products * costs.train_seconds / 3600,
        "machines_to_learn": math.ceil(products * costs.train_seconds / 3600 / GOAL_HOURS),
        "replicas": replicas,
        "replica_bytes": REPLICA_BYTES + KEPT * MERGED_BYTES + in_file * PROFILE_BYTES,
        "start_seconds": LOAD_SECONDS + in_file * LOAD_PER_PRODUCT,
        "network_bytes_per_second": rate * IMAGE_BYTES,
        "price_per_million": 1e6 / costs.images_per_second / 3600 * costs.machine_price,
        "most_misses": _most_misses(costs),
    }


def _most_misses(costs: Costs) -> float:
    """The fraction of images at which reading experts takes a tenth of a replica's time."""
    return 0.1 / (costs.images_per_second * costs.miss_seconds)


def markdown(found: dict[str, Any]) -> str:
    plans = markdown_table(
        ["products", "machine", "files", "size", "learning: machine hours", "machines for a day", "replicas", "memory",
         "start", "network", "$ per million images", "misses that cost a tenth"],
        [
            [
                f"{row['products']:,}",
                row["machine"],
                row["files"],
                f"{row['bytes'] / 1e9:.1f} GB",
                f"{row['machine_hours_to_learn']:,.1f}",
                f"{row['machines_to_learn']:,}",
                f"{row['replicas']:,}",
                f"{row['replica_bytes'] / 1e9:.2f} GB",
                f"{row['start_seconds']:.1f} s",
                f"{row['network_bytes_per_second'] * 8 / 1e9:.0f} Gbit/s",
                f"{row['price_per_million']:.2f}",
                f"{100 * min(row['most_misses'], 1):.1f} %",
            ]
            for row in found["plans"]
        ],
    )  # fmt: skip
    simulated = markdown_table(
        ["traffic", "replicas", "any replica", "by product"],
        [
            [row["traffic"], row["replicas"], f"{100 * row['any replica']:.1f} %", f"{100 * row['by product']:.1f} %"]
            for row in found["misses"]
        ],
    )
    return f"{plans}\n\nMisses with {found['simulated_products']:,} products, {KEPT} experts a replica:\n\n{simulated}"


def main(arguments: Sequence[str]) -> int:
    parser: argparse.ArgumentParser = make_parser("scale_plan", __doc__)
    parser.add_argument("--products", type=positive, nargs="+", default=[1000, 100_000], metavar="N")
    parser.add_argument("--rate", type=float, default=10_000.0, metavar="N", help="images a second, of all products")
    parser.add_argument("--simulated", type=positive, default=1000, metavar="N", help="products of the simulation")
    parser.add_argument("--images", type=positive, default=400_000, metavar="N", help="simulated images")
    parser.add_argument("--replicas", type=positive, nargs="+", default=[1, 4, 16, 64], metavar="N")
    add_output(parser)
    options = parser.parse_args(arguments)
    found = {
        "rate": options.rate,
        "costs": [asdict(costs) for costs in MEASURED],
        "plans": [plan(products, options.rate, costs) for products in options.products for costs in MEASURED],
        "simulated_products": options.simulated,
        "misses": simulate(options.simulated, options.replicas, options.images),
    }
    return finish(options.output, found, markdown(found))
