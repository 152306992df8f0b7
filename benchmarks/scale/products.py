"""What does a checkpoint of 1, 10, 100 or 1,000 products cost to load, to hold, to predict with and to add to?

    python -m benchmarks scale [--preset main] [--products 1 --products 10 …] [--folder DIR] [--output FILE.json]

The checkpoints are synthetic (``shared/synthetic_checkpoint.py``). They are written to a folder in ``DIR`` that is
removed afterwards: 27 GB for all four with ``main``, and as much again while a product is added to the largest. Every
size has its own fresh processes, and the sizes take turns, so that a slow machine slows all of them. Figures are
medians over the rounds, ratios are taken within a round. Files are in the page cache as far as memory allows.

The gates compare the most products with 10 (``--against``): latency at most 1.1 times; loading at most 2 times,
without the time for the prototypes; memory for adding a product within 1 % of the file; memory bounded by the set of
cached experts, however many products are used; and older products unchanged to the bit.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks.shared.command import Gate, add_output, finish, make_parser
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import processor
from benchmarks.shared.statistics import ratios, spread
from benchmarks.shared.subprocesses import environment, module_command
from moleflow.model.runtime.threads import THREAD_POLICY, configure_threads
from moleflow.training.report.markdown import markdown_table

PRODUCTS = (1, 10, 100, 1000)

VISITED = 64
"""Products that are used one after another: twice the experts that the detector caches."""


class Worker:
    """A process of ``worker.py`` for one file."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        variables = {**THREAD_POLICY, "MOLEFLOW_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            module_command("benchmarks.scale.worker", path, precision),
            env=environment(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do} | options) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("a worker ended early; see its output above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(paths: dict[int, Path], options: argparse.Namespace) -> dict[str, Any]:
    """All figures by the number of products, most of them one per round."""

    def start(products: int) -> Worker:
        return Worker(paths[products], options.precision, options.threads)

    found: dict[str, Any] = {"file_bytes": {products: path.stat().st_size for products, path in paths.items()}}
    loads: dict[int, list[dict[str, Any]]] = {products: [] for products in paths}
    for _ in range(options.rounds):
        for products in paths:
            with start(products) as worker:
                loads[products].append(worker.ask("load"))
    found["load"] = loads
    workers = {products: start(products).__enter__() for products in paths}
    times: dict[int, list[float]] = {products: [] for products in paths}
    found["first_ms"] = {}
    for products, worker in workers.items():
        worker.ask("load")
        found["first_ms"][products] = worker.ask("predict", count=1)["ms"][0]
    for _ in range(options.predictions):
        for products, worker in workers.items():
            times[products] += worker.ask("predict", count=1)["ms"]
    found["predict_ms"] = times
    found["resident_bytes"] = {
        products: worker.ask("predict", count=1)["resident_bytes"] for products, worker in workers.items()
    }
    for worker in workers.values():
        worker.__exit__()
    found["visit"] = {}
    for products in (products for products in paths if products >= VISITED):
        with start(products) as worker:
            worker.ask("load")
            asked = [index * products // VISITED for index in range(VISITED)]
            found["visit"][products] = worker.ask("visit", products=asked)["resident_bytes"]
    adds: dict[int, list[dict[str, Any]]] = {products: [] for products in paths}
    for _ in range(options.adds):
        for products in paths:
            with start(products) as worker:
                adds[products].append(worker.ask("add"))
    return found | {"add": adds}


def gates(found: dict[str, Any], most: int, against: int) -> list[Gate]:
    """The gates on ``most`` products, compared with ``against``."""
    latency = ratios(found["predict_ms"][most], found["predict_ms"][against])
    # Only the prototypes' extra time counts as theirs: `against` products have some too.
    loads, few = found["load"][most], found["load"][against]
    without = [
        (large["seconds"] - large["prototypes_seconds"] + small["prototypes_seconds"]) / small["seconds"]
        for large, small in zip(loads, few, strict=True)
    ]
    whole = ratios([large["seconds"] for large in loads], [small["seconds"] for small in few])
    growth = max(each["peak_bytes"] for each in found["add"][most])
    allowed = max(each["peak_bytes"] for each in found["add"][against]) + found["add"][most][-1]["file_bytes"] / 100
    same = all(each["same"] for adds in found["add"].values() for each in adds)
    rows = [
        Gate(f"latency, {most} / {against} products", spread(latency, 2), "≤ 1.1", median(latency) <= 1.1),
        Gate(
            f"loading without the prototypes, {most} / {against} products",
            f"{spread(without, 2)}; with them {spread(whole, 2)}",
            "≤ 2",
            median(without) <= 2,
        ),
        Gate(
            f"memory for adding a product to {most}",
            f"{growth / 1e6:.0f} MB",
            f"≤ {allowed / 1e6:.0f} MB",
            growth <= allowed,
        ),
        Gate("older products after adding one", "unchanged" if same else "changed", "unchanged", same),
    ]
    for products, resident in found["visit"].items():
        half = len(resident) // 2
        grown = (resident[-1] - resident[half - 1]) / max(resident[half - 1] - resident[0], 1)
        sizes = f"{resident[half - 1] / 1e6:.0f} → {resident[-1] / 1e6:.0f} MB"
        name = f"growth of memory beyond {half} used products, of {products}"
        rows.append(Gate(name, f"{grown:.0%} ({sizes})", "< 10%", grown < 0.1))
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The table of all sizes."""
    headings = [
        "products",
        "file",
        "per further product",
        "load",
        "of it prototypes",
        "resident after loading",
        "router",
        "a prediction",
        "the first of a product",
        "resident, predicting",
        "add one",
        "memory for adding",
    ]

    def middle(rows: list[dict[str, Any]], key: str) -> float:
        return median(each[key] for each in rows)

    rows = []
    earlier = 0, 0
    for products, file_bytes in found["file_bytes"].items():
        load, add = found["load"][products], found["add"][products]
        each = (file_bytes - earlier[1]) / (products - earlier[0]) / 1e6 if earlier[0] else None
        earlier = products, file_bytes
        rows.append(
            [
                f"{products:,}",
                f"{file_bytes / 1e6:,.1f} MB",
                "–" if each is None else f"{each:.2f} MB",
                f"{middle(load, 'seconds'):.2f} s",
                f"{middle(load, 'prototypes_seconds'):.2f} s",
                f"{middle(load, 'resident_bytes') / 1e6:,.0f} MB",
                f"{middle(load, 'router_bytes') / 1e6:.1f} MB",
                f"{spread(found['predict_ms'][products], 0)} ms",
                f"{found['first_ms'][products]:.0f} ms",
                f"{found['resident_bytes'][products] / 1e6:,.0f} MB",
                f"{middle(add, 'seconds'):.1f} s",
                f"{max(each['peak_bytes'] for each in add) / 1e6:.0f} MB",
            ]
        )
    return markdown_table(headings, rows, right_from=0)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("scale", __doc__)
    parser.add_argument("--preset", default="main", help="whose shapes the network has")
    parser.add_argument("--products", type=int, action="append", help="repeat for more; default: 1, 10, 100, 1000")
    parser.add_argument("--against", type=int, default=10, help="the number that the largest is compared with")
    parser.add_argument("--folder", type=Path, help="for the files; default: the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each")
    parser.add_argument("--predictions", type=int, default=15, help="of each, after the first")
    parser.add_argument("--adds", type=int, default=2, help="products added to each")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, help="default: all processors")
    add_output(parser)
    options = parser.parse_args(arguments)
    options.threads = configure_threads(options.threads)
    from benchmarks.shared.synthetic_checkpoint import write_synthetic_checkpoint
    from moleflow.training.config import preset

    wanted = sorted(options.products or PRODUCTS)
    if options.against not in wanted:
        parser.error(f"--against {options.against} is none of the numbers of products: {wanted}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the files are removed then too
    folder = Path(tempfile.mkdtemp(prefix="scale.", dir=options.folder))
    try:
        paths = {products: folder / f"{products}.safetensors" for products in wanted}
        for products, path in paths.items():
            print(f"writing {products} products …", file=sys.stderr, flush=True)
            write_synthetic_checkpoint(path, preset(options.preset), products)
        found = measure(paths, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = {
        "preset": options.preset,
        "precision": options.precision,
        "threads": options.threads,
        "processor": processor(),
    }
    return finish(options.output, facts | found, markdown(found), gates(found, max(wanted), options.against))
