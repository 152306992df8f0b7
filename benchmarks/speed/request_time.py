"""Where does the time of one request go?

    python -m benchmarks request_time --images DIR [--checkpoint FILE] [--rounds 5] [--output FILE.json]

Every image goes through the steps of the service one after another in this process, and each step is timed; the table
shows medians with minimum and maximum over the rounds. The steps that only a service has come from a running one that
gets one image at a time: the queue from the answers' ``timing_ms``, and HTTP as the rest of the client's latency
(upload, parsing, threads, answer, and the client itself).
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.shared.command import add_output, finish, make_parser, positive
from benchmarks.shared.random_checkpoint import write_random_checkpoint
from benchmarks.shared.running_service import RunningService
from benchmarks.shared.statistics import spread
from benchmarks.speed.pipeline import image_files, job_of
from benchmarks.speed.wrk import drive, find_wrk, generator
from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images
from moleflow.model.images.decode import DecodedImage, open_for_model
from moleflow.model.runtime.threads import configure_threads
from moleflow.model.verdict.results import Prediction
from moleflow.service.responses.encode import base64_pieces, describe_map
from moleflow.service.responses.render import ResponseFormat, render
from moleflow.training.report.markdown import markdown_table

STEPS = ("decode", "resize", "queue", "backbone", "flow", "map", "encode", "http")

WHAT = {
    "decode": "file to RGB",
    "resize": "to the model's input",
    "queue": "waiting for the model, nobody else asking",
    "backbone": "normalise, backbone, embeddings, router",
    "flow": "expert and score",
    "map": "patch map to the image's size",
    "encode": "map to 16-bit PNG, and the JSON",
    "http": "upload, parsing, threads, answer, client",
}


def time_steps(detector: Detector, data: bytes) -> dict[str, float]:
    """Milliseconds of each step that needs no service, for one image file."""
    preprocessing, moments = detector.preprocessing, [perf_counter()]
    image = open_for_model(data, preprocessing.image_size)
    moments.append(perf_counter())
    pixels = preprocessing.resize(image.pixels)
    moments.append(perf_counter())
    with torch.inference_mode():
        batch = stack_images([pixels], preprocessing.resize, detector.device)
        features, distances, _ = detector.embed_and_route(batch)
        task = int(distances[0].argmin())
        moments.append(perf_counter())
        detector.products.maps(features, [task]).anomaly.cpu()
    moments.append(perf_counter())
    names = ("decode", "resize", "backbone", "flow")
    steps = {name: (end - start) * 1000 for name, start, end in zip(names, moments, moments[1:], strict=False)}
    (finding,) = detector.predict([pixels], refuse_unknown=False)
    assert isinstance(finding, Prediction)
    started = perf_counter()
    values = finding.pixel_map(image.height, image.width)
    steps["map"] = (perf_counter() - started) * 1000
    started = perf_counter()
    _, pieces = describe_map(values, "png")
    b"".join(base64_pieces(pieces))
    packed = (perf_counter() - started) * 1000
    started = perf_counter()
    job = job_of(detector, data, DecodedImage(pixels, image.width, image.height), finding)
    render(job, ResponseFormat(map_encoding="none"))
    steps["encode"] = packed + (perf_counter() - started) * 1000
    return steps


def measure(options: argparse.Namespace, checkpoint: Path, images: Sequence[Path]) -> dict[str, list[float]]:
    """The median of every step in each round, and the client's latency as ``request``."""
    detector = Detector.load(checkpoint, plugin=options.plugin, unknown_limit=0)
    detector.warm_up(1)
    files = [path.read_bytes() for path in images]
    plugin = ["--plugin", options.plugin] if options.plugin else []
    rounds: list[dict[str, float]] = []
    with RunningService(checkpoint, *plugin) as service:
        program = find_wrk(options.wrk)
        drive(program, service.url, "/predict", images, 1, 2)
        for data in files:
            time_steps(detector, data)
        # In turn, so that a slow machine slows both.
        for _ in range(options.rounds):
            rows = [time_steps(detector, data) for data in files]
            load = drive(program, service.url, "/predict", images, 1, options.seconds)
            inside = load["decode"] + load["queue"] + load["inference"] + load["encode"]
            asked = {"queue": load["queue"], "http": load["latency"] - inside, "request": load["latency"]}
            rounds.append(
                {name: median(row[name] for row in rows) for name in rows[0]}
                | {name: float(np.median(values)) for name, values in asked.items()}
            )
    return {name: [each[name] for each in rounds] for name in rounds[0]}


def markdown(result: dict[str, Any]) -> str:
    """The table of steps and their sum."""
    steps = result["steps_ms"]
    total = sum(median(steps[name]) for name in STEPS)
    rows = [[name, WHAT[name], spread(steps[name], 1), f"{median(steps[name]) / total:.0%}"] for name in STEPS]
    rows.append(["sum", f"the client measured {spread(steps['request'], 1)}", f"{total:.1f}", "100%"])
    table = markdown_table(["step", "what", "ms (minimum–maximum of the rounds)", "fraction"], rows)
    return f"{table}\n\nRequests from {result['generator']}."


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("request_time", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder whose images are timed")
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--plugin", help="module that registers the checkpoint's backbone with timm")
    parser.add_argument("--rounds", type=positive, default=5, help="of this process and the service in turn")
    parser.add_argument("--seconds", type=positive, default=4, help="of requests to the service per round")
    parser.add_argument("--wrk", help="path of wrk")
    add_output(parser)
    options = parser.parse_args(arguments)
    load_before, threads = round(os.getloadavg()[0], 2), configure_threads()
    images = image_files(options.images)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors")
        steps = measure(options, checkpoint, images)
    made_by = generator(find_wrk(options.wrk))
    result = {"threads": threads, "load_before": load_before, "generator": made_by, "steps_ms": steps}
    return finish(options.output, result, markdown(result))
