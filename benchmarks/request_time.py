"""Where does the time of one request go?

    python benchmarks/request_time.py --images DIR [--checkpoint FILE] [--rounds 5] [--output FILE.json]

Every image in turn goes through the steps that a service takes, one after another in this process, and each step is
timed by itself; shown are medians, with the least and the greatest of the rounds. The steps that only a service has
come from a running one, asked for one image at a time: the queue from its answers' ``timing_ms``, and HTTP as what
is left of the client's latency (upload, parsing, threads, answer, and the client itself).
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pipeline import job_of
from random_checkpoint import write_random_checkpoint
from result_files import spread, write_result
from running_service import RunningService, ServiceError
from wrk import LoadError, drive, find_wrk, generator

from moleflow.model.detector import Detector
from moleflow.model.errors import MoLEFlowError
from moleflow.model.features.extractor import stack_images
from moleflow.model.images.decode import SUFFIXES, DecodedImage, open_for_model
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.model.verdict.results import Prediction
from moleflow.service.responses.encode import encode_map
from moleflow.service.responses.render import ResponseFormat, render

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
    """Milliseconds of each step that needs no service, for one image."""
    preprocessing, moments = detector.preprocessing, [perf_counter()]
    image = open_for_model(data, preprocessing.image_size)
    moments.append(perf_counter())
    pixels = preprocessing.resize(image.pixels)
    moments.append(perf_counter())
    with torch.inference_mode():
        batch = stack_images([pixels], preprocessing.resize, detector.device)
        embeddings, distances, _ = detector.embed_and_route(batch)
        task = int(distances[0].argmin())
        moments.append(perf_counter())
        maps, _ = detector.score(embeddings, [task])
        maps.cpu()
    moments.append(perf_counter())
    names = ("decode", "resize", "backbone", "flow")
    steps = {name: (end - start) * 1000 for name, start, end in zip(names, moments, moments[1:], strict=False)}
    (finding,) = detector.predict([pixels], refuse_unknown=False)
    assert isinstance(finding, Prediction)
    started = perf_counter()
    values = finding.pixel_map(image.height, image.width)
    steps["map"] = (perf_counter() - started) * 1000
    started = perf_counter()
    encode_map(values, "png")
    packed = (perf_counter() - started) * 1000
    started = perf_counter()
    job = job_of(detector, data, DecodedImage(pixels, image.width, image.height), finding)
    render(job, ResponseFormat(map_encoding="none"))
    steps["encode"] = packed + (perf_counter() - started) * 1000
    return steps


def measure(options: argparse.Namespace, checkpoint: Path, rgb_images: Sequence[Path]) -> dict[str, list[float]]:
    """Each round's medians of all steps, and of the client's latency as ``request``."""
    detector = Detector.load(checkpoint, plugin=options.plugin, unknown_limit=0)
    detector.warm_up(1)
    files = [path.read_bytes() for path in rgb_images]
    plugin = ["--plugin", options.plugin] if options.plugin else []
    rounds: list[dict[str, float]] = []
    with RunningService(checkpoint, *plugin) as service:
        program = find_wrk(options.wrk)
        drive(program, service.url, "/predict", rgb_images, 1, 2)
        for data in files:
            time_steps(detector, data)
        # By turns, so that whatever slows the machine slows both alike.
        for _ in range(options.rounds):
            rows = [time_steps(detector, data) for data in files]
            load = drive(program, service.url, "/predict", rgb_images, 1, options.seconds)
            inside = load["decode"] + load["queue"] + load["inference"] + load["encode"]
            asked = {"queue": load["queue"], "http": load["latency"] - inside, "request": load["latency"]}
            rounds.append(
                {name: median(row[name] for row in rows) for name in rows[0]}
                | {name: float(np.median(values)) for name, values in asked.items()}
            )
    return {name: [each[name] for each in rounds] for name in rounds[0]}


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    steps = result["steps_ms"]
    total = sum(median(steps[name]) for name in STEPS)
    lines = ["| step | what | ms (least–greatest of the rounds) | share |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {WHAT[name]} | {spread(steps[name], 1)} | {median(steps[name]) / total:.0%} |" for name in STEPS
    ]
    lines.append(f"| sum | the client measured {spread(steps['request'], 1)} | {total:.1f} | 100% |")
    return "\n".join([*lines, "", f"Requests from {result['generator']}."]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 on an error that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder whose images are timed")
    parser.add_argument("--checkpoint", type=Path, help="default: MAIN with random weights")
    parser.add_argument("--plugin", help="module that registers the checkpoint's backbone with timm")
    parser.add_argument("--rounds", type=int, default=5, help="of the images in this process and the service in turn")
    parser.add_argument("--seconds", type=int, default=4, help="that the service is asked for in a round")
    parser.add_argument("--wrk", help="the load generator's program")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    options = parser.parse_args(arguments)
    load_before, threads = round(os.getloadavg()[0], 2), configure_threads()
    rgb_images = sorted(path for path in options.rgb_images.glob("*") if path.suffix.lower() in SUFFIXES)
    try:
        if not rgb_images:
            raise LoadError(f"{options.rgb_images} holds no images; name a folder with some (--images).")
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors")
            steps = measure(options, checkpoint, rgb_images)
    except (LoadError, ServiceError, MoLEFlowError) as error:
        print(f"request_time: {error}", file=sys.stderr)
        return 1
    made_by = generator(find_wrk(options.wrk))
    result = {"threads": threads, "load_before": load_before, "generator": made_by, "steps_ms": steps}
    text = markdown(result)
    if options.output:
        write_result(options.output, result, text)
    print(text)
    return 0


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
