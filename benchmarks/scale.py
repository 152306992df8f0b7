"""What a checkpoint costs with 1, 10, 100 and 1,000 products: to load, to keep, to predict with, and to add to.

    python benchmarks/scale.py --output scale.json [--preset main] [--products 1 --products 10 …] [--folder DIR]

The checkpoints are synthetic (``scale_checkpoint.py``) and are written to a folder in ``DIR`` that is removed
afterwards: 27 GB for all four of ``main``, and as much again while a product is added to the largest. Every size has
fresh processes of its own, and sizes take turns, so that whatever slows the machine slows all alike; figures are
medians over the rounds, ratios are taken within a round. Files are in the page cache as far as memory allows.

Gates compare the most products with 10 (``--against``): latency ≤ 1.1 times, loading ≤ 2 times besides the time for
the prototypes, memory of adding within 1 % of the file, that of many products in use no more than the bounded
set of experts, and older products' bytes as they were. Exit status 1 when one fails.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Self

from machine import processor
from result_files import ratios, spread, write_result

from moleflow.model.runtime.threads import THREAD_POLICY, configure_threads, restart_prepared

HERE = Path(__file__).resolve().parent

PRODUCTS = (1, 10, 100, 1000)

VISITED = 64
"""Products that are used one after another: twice the experts that the detector keeps."""


class Worker:
    """A process of ``scale_worker.py`` on one file."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        environment = os.environ | THREAD_POLICY | {"MOLEFLOW_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(":")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "scale_worker.py"), str(path), precision],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

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
            raise SystemExit("scale: a worker ended early; what it said is above.")
        return json.loads(line)


def measure(paths: dict[int, Path], options: argparse.Namespace) -> dict[str, Any]:
    """All figures by the number of products, each a list with one entry a round."""

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


def gates(found: dict[str, Any], most: int, against: int) -> list[tuple[str, str, bool]]:
    """What is demanded, what was measured, and whether that is enough."""
    latency = ratios(found["predict_ms"][most], found["predict_ms"][against])
    # The prototypes' own time is what more of them cost: `against` has some too.
    loads, few = found["load"][most], found["load"][against]
    besides = [
        (large["seconds"] - large["prototypes_seconds"] + small["prototypes_seconds"]) / small["seconds"]
        for large, small in zip(loads, few, strict=True)
    ]
    whole = ratios([large["seconds"] for large in loads], [small["seconds"] for small in few])
    growth = max(each["peak_bytes"] for each in found["add"][most])
    usual = max(each["peak_bytes"] for each in found["add"][against])
    file_bytes = found["add"][most][-1]["file_bytes"]
    same = all(each["same"] for adds in found["add"].values() for each in adds)
    rows = [
        (f"latency with {most} ≤ 1.1 × that with {against}", f"{spread(latency, 2)} ×", median(latency) <= 1.1),
        (
            f"loading {most} ≤ 2 × loading {against}, besides the prototypes",
            f"{spread(besides, 2)} ×; with them {spread(whole, 2)} ×",
            median(besides) <= 2,
        ),
        (
            f"memory of adding to {most} ≤ that of adding to {against} + 1 % of the file",
            f"{growth / 1e6:.0f} MB against {usual / 1e6:.0f} + {file_bytes / 1e8:.0f} MB",
            growth <= usual + file_bytes / 100,
        ),
        ("older products unchanged after adding", "yes" if same else "no", same),
    ]
    for products, resident in found["visit"].items():
        half = len(resident) // 2
        grown = (resident[-1] - resident[half - 1]) / max(resident[half - 1] - resident[0], 1)
        text = f"{resident[half - 1] / 1e6:.0f} → {resident[-1] / 1e6:.0f} MB"
        rows.append((f"memory does not grow beyond {half} products in use, of {products}", text, grown < 0.1))
    return rows


def markdown(found: dict[str, Any], verdicts: Sequence[tuple[str, str, bool]]) -> str:
    """The tables."""
    lines = [
        "| products | file | bytes a further product | load | of it prototypes | resident after loading | router "
        "| a prediction | the first of a product | resident, predicting | add one | memory of adding |",
        "|" + " ---: |" * 12,
    ]
    earlier = 0, 0
    for products, file_bytes in found["file_bytes"].items():
        load, add = found["load"][products], found["add"][products]

        def middle(rows: list[dict[str, Any]], key: str) -> float:
            return median(each[key] for each in rows)

        each = (file_bytes - earlier[1]) / (products - earlier[0]) / 1e6 if earlier[0] else None
        earlier = products, file_bytes
        cells = [
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
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| gate | measured | |", "| --- | ---: | --- |"]
    lines += [f"| {gate} | {value} | {'PASS' if passed else 'FAIL'} |" for gate, value, passed in verdicts]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON; the tables go beside it, with suffix .md")
    parser.add_argument("--preset", default="main", help="whose shapes the network has")
    parser.add_argument("--products", type=int, action="append", help="repeat for more; 1, 10, 100, 1000")
    parser.add_argument("--against", type=int, default=10, help="the number that the largest is compared with")
    parser.add_argument("--folder", type=Path, help="where the files are made; the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each")
    parser.add_argument("--predictions", type=int, default=15, help="of each, after the first")
    parser.add_argument("--adds", type=int, default=2, help="products added to each")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=configure_threads())
    options = parser.parse_args()
    from scale_checkpoint import write_synthetic_checkpoint

    from moleflow.training.config import preset

    wanted = sorted(options.products or PRODUCTS)
    if options.against not in wanted:
        parser.error(f"--against {options.against} is none of the numbers of products: {wanted}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the files go then too
    folder = Path(tempfile.mkdtemp(prefix="scale.", dir=options.folder))
    try:
        paths = {products: folder / f"{products}.safetensors" for products in wanted}
        for products, path in paths.items():
            print(f"scale: writes {products} products", file=sys.stderr, flush=True)
            write_synthetic_checkpoint(path, preset(options.preset), products)
        found = measure(paths, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    verdicts = gates(found, max(wanted), options.against)
    facts = {
        "preset": options.preset, "precision": options.precision, "threads": options.threads,
        "processor": processor(), "gates": verdicts,
    }  # fmt: skip
    text = markdown(found, verdicts)
    write_result(options.output, facts | found, text)
    print(text)
    return 0 if all(passed for _, _, passed in verdicts) else 1


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
