"""How good are a running service's answers over a sequence of products? Sends every test image through it.

    python -m benchmarks http_sequence --url http://127.0.0.1:8000 --data DATA --category bottle --category grid

Each category must have been learned under its own name. Image files go over HTTP unchanged, several at a time and with
the products mixed, as the cameras of a factory would send them. Thresholds and verdicts are the service's own.

Every figure is that of the whole service: where the router chose the wrong product, the score, map and verdict of the
wrong expert count for the image's category. A refused image counts as routed wrongly and as an alarm, since it does
not pass. For the ranking it is sent again with the nearest product named; ``response_ms`` is that of the first answer.
``--true-task`` measures a second time with the product named, which shows what the router cost. Defective images
without mask count for the image figures only; maps and masks are compared at 256 × 256 pixels.
"""

import base64
import io
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.shared.command import add_output, finish, make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from moleflow.training.data.datasets import Category, Sample, load_category
from moleflow.training.evaluation.figures import category_figures, labelled_pixels
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores
from moleflow.training.evaluation.records import METRICS
from moleflow.training.report.markdown import markdown_table
from moleflow.training.report.tables import HEADINGS, percent

TIMEOUT_SECONDS = 120.0
"""For one answer."""

MOST_TRIES = 60
"""How often one image is sent to a service whose queue is full, at the intervals that it asks for."""

FRACTIONS = ("routing_accuracy", *METRICS)
"""The figures of a category that are averaged over categories and shown in percent."""


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
    """The answers of one category."""

    samples: list[Sample] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    routed_right: list[bool | None] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)

    def add(self, sample: Sample, answer: Answer, routed_right: bool | None) -> None:
        """Count one answer; ``routed_right`` is ``None`` when the router was not asked."""
        if answer.anomaly_map is not None:
            self.pixels.append(labelled_pixels(sample, answer.anomaly_map))
        self.samples.append(sample)
        self.answers.append(replace(answer, anomaly_map=None))
        self.routed_right.append(routed_right)

    def figures(self) -> dict[str, Any]:
        """The category's figures, each a fraction 0…1; ``None`` where there is nothing to measure it on."""
        defective = sum(sample.is_anomalous for sample in self.samples)
        found = category_figures(
            self.samples,
            [each.score for each in self.answers],
            self.pixels,
            [each.is_anomalous for each in self.answers],
        )
        return {
            "good": len(self.samples) - defective,
            "defective": defective,
            "routing_accuracy": mean(self.routed_right),
            **found.model_dump(),
        }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the defined values, or ``None`` without any."""
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None


def learned_tasks(client: httpx.Client) -> dict[str, Any]:
    """The answer of ``GET /tasks``. ``BenchmarkError`` when there is none."""
    try:
        response = client.get("/tasks")
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise BenchmarkError(f"{client.base_url} does not list its products ({error}); is the service up?") from error
    return answer


def ask(client: httpx.Client, sample: Sample, task: str | None, wants_map: bool) -> Answer:
    """Send one image; wait and try again while the service's queue is full."""
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
    """Send every test image once; ``forced`` names the product in each request."""
    jobs = [(category, sample) for category in categories for sample in category.test]
    random.Random(0).shuffle(jobs)
    has_masks = {category.name: any(sample.masks for sample in category.test) for category in categories}
    tallies = {category.name: Tally() for category in categories}

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
    wall = time.perf_counter() - start

    rows = [{"category": name, **tally.figures()} for name, tally in tallies.items()]
    seconds = [answer.seconds for tally in tallies.values() for answer in tally.answers]
    return {
        "task_named_by_client": forced,
        "images": len(jobs),
        "routing_accuracy": mean([right for tally in tallies.values() for right in tally.routed_right]),
        "categories": rows,
        "mean": {name: mean([row[name] for row in rows]) for name in FRACTIONS},
        "seconds": wall,
        "images_per_second": len(jobs) / wall,
        "connections": connections,
        "response_ms": {
            "median": 1000 * float(np.median(seconds)),
            "percentile_95": 1000 * float(np.percentile(seconds, 95)),
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """One pass as a table in percent."""
    title = "Product named by the client" if result["task_named_by_client"] else "Product found by the router"
    rows = [
        [row["category"], row["good"], row["defective"], *(percent(row[name]) for name in FRACTIONS)]
        for row in result["categories"]
    ]
    rows.append(["mean", "", "", *(percent(result["mean"][name]) for name in FRACTIONS)])
    headings = ["category", "good", "defective", *(f"{HEADINGS[name]} %" for name in FRACTIONS)]
    return (
        f"## {title}\n\n{markdown_table(headings, rows, right_from=1)}\n\n"
        f"{result['images']} images, routing overall {percent(result['routing_accuracy'])} %, "
        f"{result['images_per_second']:.1f} images/s over {result['connections']} connections, "
        f"median response {result['response_ms']['median']:.0f} ms."
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("http_sequence", __doc__)
    parser.add_argument("--url", required=True, help="where the service answers")
    parser.add_argument("--data", required=True, type=Path, help="folder that holds the categories")
    parser.add_argument("--category", required=True, action="append", help="repeat for each one")
    parser.add_argument("--true-task", action="store_true", help="measure again with the product named")
    parser.add_argument("--connections", type=positive, default=4, help="requests at a time (default: 4)")
    add_output(parser)
    options = parser.parse_args(arguments)
    categories = [load_category(options.data, name) for name in options.category]
    for category in categories:
        if not category.test:
            raise BenchmarkError(f"{category.root / category.name} holds no test images; leave it out.")
    try:
        with httpx.Client(base_url=options.url, timeout=TIMEOUT_SECONDS) as client:
            tasks = learned_tasks(client)
            unknown = set(options.category) - {task["name"] for task in tasks["tasks"]}
            if unknown:
                raise BenchmarkError(f"the service has not learned {', '.join(sorted(unknown))}; leave it out.")
            results = [
                measure(client, categories, options.connections, forced)
                for forced in ((False, True) if options.true_task else (False,))
            ]
    except httpx.HTTPError as error:
        raise BenchmarkError(f"{options.url} stopped answering ({error}); see the service's log.") from error
    report = {"checkpoint": tasks["checkpoint"], "evaluation_side": EVALUATION_SIDE, "passes": results}
    return finish(options.output, report, "\n\n".join(map(markdown, results)))
