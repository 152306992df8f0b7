"""Send every test image of a sequence of products through a running service, and say how good its answers are.

    python benchmarks/http_sequence.py --url http://127.0.0.1:8000 --data DATA --category bottle --category grid

Each category must have been learned under its own name. Images go over HTTP as their files are, several at a time
and with the products mixed, as the cameras of a factory would send them. Thresholds and verdicts are the service's own.

Every figure is that of the whole service: where the router took the wrong product, the score, map and verdict of that
wrong expert count for the category that the image belongs to. An image that is refused counts as routed wrongly and
as an alarm, since it is not passed; for the ranking it is sent again, for the nearest product, and ``response_ms`` is
that of the first answer. ``--true-task`` measures a second time with the product
named in each request, which tells what the router cost. Defective images without mask count for the image figures
only; maps and masks are compared at 256 × 256 pixels.
"""

import argparse
import base64
import io
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from moleflow.model.errors import MoLEFlowError
from moleflow.training.data.datasets import Category, Sample, load_category
from moleflow.training.data.masks import read_mask
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores, image_ranking

TIMEOUT_SECONDS = 120.0
"""For one answer; a service that is still at it by then has stopped."""

MOST_TRIES = 60
"""How often one image is offered to a service whose queue is full, at the intervals that it asks for."""


class BenchmarkError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said of one image: its product, ``None`` if refused; ``anomaly_map`` at the image's size."""

    task: str | None
    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray | None
    seconds: float


@dataclass(slots=True)
class Tally:
    """Everything collected about one category."""

    scores: list[float] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)
    verdicts: list[bool] = field(default_factory=list)
    routed_right: list[bool | None] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)

    def add(self, sample: Sample, answer: Answer, routed_right: bool | None) -> None:
        """Count one answer; ``routed_right`` is ``None`` when the router was not asked."""
        self.scores.append(answer.score)
        self.labels.append(sample.is_anomalous)
        self.verdicts.append(answer.is_anomalous)
        self.routed_right.append(routed_right)
        if answer.anomaly_map is None:
            return
        if not sample.is_anomalous:
            self.pixels.add(answer.anomaly_map, None)
        elif sample.masks:
            self.pixels.add(answer.anomaly_map, read_mask(sample.masks, *answer.anomaly_map.shape))


@dataclass(frozen=True, slots=True)
class Figures:
    """One category's results, each a share 0…1; ``None`` where the category has nothing to measure it on."""

    category: str
    good: int
    defective: int
    routing_accuracy: float | None
    image_auroc: float | None
    image_ap: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    false_alarm_rate: float | None
    defect_recall: float | None


SHARES = (
    "routing_accuracy",
    "image_auroc",
    "image_ap",
    "pixel_auroc",
    "pixel_ap",
    "false_alarm_rate",
    "defect_recall",
)
"""The fields of ``Figures`` that are averaged over categories and printed in percent."""


def figures_of(category: str, tally: Tally) -> Figures:
    """Sum up one category."""
    images, pixels = image_ranking(tally.scores, tally.labels), tally.pixels.ranking()
    paired = list(zip(tally.verdicts, tally.labels, strict=True))
    return Figures(
        category=category,
        good=tally.labels.count(False),
        defective=tally.labels.count(True),
        routing_accuracy=mean(tally.routed_right),
        image_auroc=images.auroc,
        image_ap=images.average_precision,
        pixel_auroc=pixels.auroc,
        pixel_ap=pixels.average_precision,
        false_alarm_rate=mean([verdict for verdict, label in paired if not label]),
        defect_recall=mean([verdict for verdict, label in paired if label]),
    )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those values that are defined, or ``None`` without any."""
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None


def learned_tasks(client: httpx.Client) -> dict[str, Any]:
    """What ``GET /tasks`` answers. ``BenchmarkError`` when no service does."""
    try:
        response = client.get("/tasks")
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise BenchmarkError(f"{client.base_url} does not list its products ({error}); is the service up?") from error
    return answer


def ask(client: httpx.Client, sample: Sample, task: str | None, wants_map: bool) -> Answer:
    """Send one image; waits and tries again while the service's queue is full."""
    query = {"map": "npy" if wants_map else "none", "map_size": "image"} | ({"task": task} if task else {})
    content = sample.path.read_bytes()
    for _ in range(MOST_TRIES):
        start = time.perf_counter()
        response = client.post(
            "/predict", params=query, content=content, headers={"content-type": "application/octet-stream"}
        )
        seconds = time.perf_counter() - start
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            break
        time.sleep(float(response.headers.get("retry-after", 1)))
    if response.status_code != httpx.codes.OK:
        raise BenchmarkError(f"{sample.path}: the service answered {response.status_code}: {response.text[:500]}")
    body = response.json()
    if body["verdict"] == "unknown_product":
        nearest = body["routing"]["candidates"][0]["name"]
        return replace(ask(client, sample, nearest, wants_map), task=None, is_anomalous=True, seconds=seconds)
    anomaly_map = np.load(io.BytesIO(base64.b64decode(body["anomaly_map"]["data"]))) if wants_map else None
    return Answer(body["task"]["name"], body["score"], body["is_anomalous"], anomaly_map, seconds)


def measure(client: httpx.Client, categories: Sequence[Category], connections: int, forced: bool) -> dict[str, Any]:
    """Send every test image once and sum up; ``forced`` names the product in each request."""
    jobs = [(category, sample) for category in categories for sample in category.test]
    random.Random(0).shuffle(jobs)
    has_masks = {category.name: any(sample.masks for sample in category.test) for category in categories}
    tallies = {category.name: Tally() for category in categories}
    seconds = []

    def send(job: tuple[Category, Sample]) -> Answer:
        category, sample = job
        return ask(client, sample, category.name if forced else None, has_masks[category.name])

    def answers(pool: ThreadPoolExecutor) -> Iterator[tuple[tuple[Category, Sample], Answer]]:
        return zip(jobs, pool.map(send, jobs), strict=True)

    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        title = "product named" if forced else "routed"
        for (category, sample), answer in track(answers(pool), title, len(jobs), console=Console(stderr=True)):
            tallies[category.name].add(sample, answer, None if forced else answer.task == category.name)
            seconds.append(answer.seconds)
    wall = time.perf_counter() - start

    rows = [asdict(figures_of(category.name, tallies[category.name])) for category in categories]
    return {
        "task_named_by_client": forced,
        "images": len(jobs),
        "routing_accuracy": mean([right for tally in tallies.values() for right in tally.routed_right]),
        "categories": rows,
        "mean": {share: mean([row[share] for row in rows]) for share in SHARES},
        "seconds": wall,
        "images_per_second": len(jobs) / wall,
        "connections": connections,
        "response_ms": {
            "median": 1000 * float(np.median(seconds)),
            "percentile_95": 1000 * float(np.percentile(seconds, 95)),
        },
    }


def table_of(result: dict[str, Any]) -> Table:
    """The result as a table, in percent."""
    named = result["task_named_by_client"]
    table = Table(
        title="Product named by the client" if named else "Product found by the router",
        caption=(
            f"{result['images']} images, routing overall {percent(result['routing_accuracy'])} %, "
            f"{result['images_per_second']:.1f} images/s over {result['connections']} connections, "
            f"median response {result['response_ms']['median']:.0f} ms"
        ),
    )
    table.add_column("category")
    for title in ("good", "defective", *(share.replace("_", " ") + " %" for share in SHARES)):
        table.add_column(title, justify="right")
    for row in result["categories"]:
        table.add_row(row["category"], str(row["good"]), str(row["defective"]), *(percent(row[s]) for s in SHARES))
    table.add_section()
    table.add_row("mean", "", "", *(percent(result["mean"][share]) for share in SHARES))
    return table


def percent(share: float | None) -> str:
    """A share in percent, or a dash."""
    return "–" if share is None else f"{100 * share:.2f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="where the service answers")
    parser.add_argument("--data", required=True, type=Path, help="folder that holds the categories")
    parser.add_argument("--category", required=True, action="append", help="repeat for each one")
    parser.add_argument("--true-task", action="store_true", help="measure again with the product named")
    parser.add_argument("--connections", type=int, default=4, help="requests at a time (default: 4)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    if options.connections < 1:
        parser.error(f"--connections must be at least 1, not {options.connections}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; the exit status is 1 when the measurement cannot be made."""
    options = parse(arguments)
    try:
        categories = [load_category(options.data, name) for name in options.category]
        for category in categories:
            if not category.test:
                raise BenchmarkError(f"{category.root / category.name} holds no test images; leave it out")
        with httpx.Client(base_url=options.url, timeout=TIMEOUT_SECONDS) as client:
            tasks = learned_tasks(client)
            unknown = set(options.category) - {task["name"] for task in tasks["tasks"]}
            if unknown:
                raise BenchmarkError(f"the service has not learned {', '.join(sorted(unknown))}; leave it out")
            results = [
                measure(client, categories, options.connections, forced)
                for forced in ((False, True) if options.true_task else (False,))
            ]
    except (BenchmarkError, MoLEFlowError, httpx.HTTPError) as error:
        print(f"http_sequence: {error}", file=sys.stderr)
        return 1
    console = Console(width=None if sys.stdout.isatty() else 160)
    for result in results:
        console.print(table_of(result))
    if options.json:
        report = {"checkpoint": tasks["checkpoint"], "evaluation_side": EVALUATION_SIDE, "passes": results}
        options.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
