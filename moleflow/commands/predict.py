"""`moleflow predict`: find defects in image files, without a server."""

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moleflow.commands import options
from moleflow.commands.predict_rows import FailOn, RowOptions, exit_status, write_rows, write_rows_on_ray

if TYPE_CHECKING:
    from moleflow.image_files import ImageFile
    from moleflow.model.loading import AnyDetector
    from moleflow.service.responses.render import Job

__all__ = ["predict"]

BATCH_SIZE = 8
"""Images per batch."""

MAX_FILE_BYTES = 2**30
"""Maximum file size: more than any image within the pixel limit takes in any format."""


MapName = Literal["none", "png", "npy", "npy16"]
"""Encodings of the anomaly map with --json."""


def predict(
    checkpoint: options.CheckpointOrFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files and folders with images.")],
    task: Annotated[str | None, typer.Option(metavar="NAME", help="The product of all images; skips routing.")] = None,
    save_overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write each image overlaid with its heat map into DIR, with the same subfolders.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image, as in the API.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write one row per image to FILE instead of printing it: .csv, .jsonl or .parquet. If FILE exists, "
            "images that have a row are skipped. With --ray a folder of Parquet files.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="With --output: go on with new and changed images until interrupted.")
    ] = False,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="With --output: also POST each row to URL as JSON.")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --output: also publish each row, on mqtt://HOST/TOPIC or mqtts://…"),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="error: exit status 1 if a file cannot be used. anomaly: also 2 if an image is anomalous. unknown: "
            "also 2 if a product is unknown. never: 0."
        ),
    ] = "error",
    false_alarm_rate: options.FalseAlarmRate = None,
    unknown_limit: options.UnknownLimit = None,
    map_: Annotated[MapName, typer.Option("--map", help="With --json: add the anomaly map in base64.")] = "none",
    max_pixels: options.MaxPixels = None,
    plugin: options.Plugin = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    engine: options.Engine = "auto",
    ray: options.RayAddress = None,
    worker_cpus: options.WorkerCpus = 1.0,
    worker_gpus: options.WorkerGpus = 0.0,
) -> None:
    """Find defects in image files: product, score, verdict, and optionally an overlay of the anomaly map.

    Folders are searched recursively, in natural order and without hidden files. An image of no learned product is
    reported as UNKNOWN, without score and overlay, unless --task names its product. An image that cannot be read or
    scored is reported on standard error, or with --output in its row, and does not stop the others; the exit status
    is then 1.
    """
    from moleflow.model.exported.folder import is_exported
    from moleflow.model.files.outputs import check_output_folder
    from moleflow.model.loading import load_detector
    from moleflow.model.names import find_named
    from moleflow.training.progress import Reporter

    rows = RowOptions(output, watch, webhook, mqtt, ray)
    rows.check(json, overlays=save_overlay is not None)
    options.prepare(max_pixels, pytorch=not is_exported(checkpoint))
    if save_overlay is not None:
        check_output_folder("the folder of overlays", save_overlay)
        _check_apart(save_overlay, images)
    rates = options.given({"false_alarm_rate": false_alarm_rate, "unknown_limit": unknown_limit})
    loading = {"device": device, "precision": precision, "engine": engine, "plugin": plugin, **rates}
    if ray is not None:
        from moleflow.cluster.connection import Share

        share = Share(worker_cpus, worker_gpus)
        raise typer.Exit(write_rows_on_ray(checkpoint, rows, images, task, max_pixels, fail_on, share, loading))
    detector = load_detector(checkpoint, **loading)
    if task is not None:
        task = find_named(task, detector.tasks).name  # fail before reading images
    if rows.output is not None:
        raise typer.Exit(write_rows(detector, rows, images, task, max_pixels, save_overlay, fail_on))
    reporter, problems = Reporter(), _Problems()
    verdicts: set[str] = set()
    # Counted only for a progress bar, so that output need not wait for the count.
    total = sum(1 for _ in _files(images, save_overlay)) if reporter.console.is_terminal else 0
    files = _files(images, save_overlay, problems)
    with reporter.phase("images", total) as phase:
        while chunk := list(islice(files, BATCH_SIZE)):
            for image, job in _jobs(detector, chunk, task, problems):
                _show(image.path, job, map_ if json else None)
                verdicts.add(job.finding.verdict)
                if save_overlay is not None:
                    _save_overlay(save_overlay / image.overlay, job, problems)
            phase.advance(len(chunk))
    if problems.count > 1:
        print(f"error: {problems.count} images or folders could not be used; see above", file=sys.stderr)
    raise typer.Exit(exit_status(fail_on, problems.count, verdicts))


class _Problems:
    """Reports each unusable file on standard error and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path, problem: object) -> None:
        from moleflow.model.files.file_names import as_line

        self.count += 1
        print(f"error: {as_line(path)}: {problem}", file=sys.stderr)


def _files(
    images: Sequence[Path], outputs: Path | None, on_problem: "_Problems | None" = None
) -> "Iterator[ImageFile]":
    from moleflow.image_files import find_images
    from moleflow.model.images.decode import SUFFIXES

    return find_images(images, SUFFIXES, on_problem or (lambda path, problem: None), outputs)


def _check_apart(outputs: Path, images: Sequence[Path]) -> None:
    """Reject writing overlays into a folder of images, where the next run would read them as images."""
    from moleflow.model.errors import ConfigurationError

    if any(os.path.isdir(path) and path.samefile(outputs) for path in images):  # noqa: PTH112 - names may be too long
        raise ConfigurationError(
            f"--save-overlay {str(outputs)!r} is the folder of the images; choose another one, such as a subfolder."
        )


def _jobs(
    detector: "AnyDetector", files: "Sequence[ImageFile]", task: str | None, problems: _Problems
) -> "Iterator[tuple[ImageFile, Job]]":
    """Decode ``files`` and run the model on them as one batch, exactly as the service does."""
    from time import perf_counter

    from moleflow.model.errors import ImageError
    from moleflow.model.files.outputs import reason
    from moleflow.model.files.regular_file import read_regular_file
    from moleflow.model.images.decode import open_for_model
    from moleflow.service.engine.inference import judge
    from moleflow.service.responses.render import Job

    readable = []
    for image in files:
        started = perf_counter()
        try:
            data = read_regular_file(image.path, MAX_FILE_BYTES)
            decoded = open_for_model(data, detector.preprocessing.image_size)
        except OSError as error:
            problems(image.path, f"cannot be read: {reason(error)}.")
        except ImageError as error:
            problems(image.path, error)
        else:
            readable.append((image, data, decoded, perf_counter() - started))
    started = perf_counter()
    findings = judge(detector, [decoded.pixels for _, _, decoded, _ in readable], [task] * len(readable))
    seconds = perf_counter() - started
    for (image, data, decoded, decoding), finding in zip(readable, findings, strict=True):
        if isinstance(finding, Exception):
            problems(image.path, finding)
            continue
        job = Job(
            data=data,
            width=decoded.width,
            height=decoded.height,
            finding=finding,
            checkpoint=detector.checkpoint,
            forced=task is not None,
            decode_seconds=decoding,
            queue_seconds=0.0,
            inference_seconds=seconds,
        )
        yield image, job


def _show(path: Path, job: "Job", json_map: MapName | None) -> None:
    """Print one line: JSON when ``json_map`` names the map's encoding, else plain text."""
    import json

    from moleflow.model.files.file_names import as_line, as_text
    from moleflow.model.verdict.results import Refusal
    from moleflow.service.responses.render import ResponseFormat, render

    if json_map is not None:
        response = json.loads(render(job, ResponseFormat(map_encoding=json_map)).content)
        print(json.dumps({"path": as_text(path)} | response), flush=True)
        return
    finding, name = job.finding, as_line(path)
    for warning in finding.warnings:
        print(f"warning: {name}: {warning}", file=sys.stderr)
    if isinstance(finding, Refusal):
        nearest = finding.candidates[0]
        print(
            f"{name}: UNKNOWN  no learned product; nearest {nearest.name}, distance {nearest.distance:.1f}", flush=True
        )
        return
    verdict = "DEFECT" if finding.is_anomalous else "good"
    print(
        f"{name}: {verdict:6}  {finding.task.name}  score {finding.score:.2f}  threshold {finding.threshold:.2f}  "
        f"p {finding.p_value:.2g}",
        flush=True,
    )


def _save_overlay(target: Path, job: "Job", problems: _Problems) -> None:
    import errno

    from moleflow.model.files.file_names import as_line
    from moleflow.model.files.outputs import reason, write_bytes
    from moleflow.model.verdict.results import Refusal
    from moleflow.service.responses.render import ResponseFormat, render

    if isinstance(job.finding, Refusal):
        name = as_line(target.stem.removesuffix("_overlay"))
        print(f"  no overlay for {name}: its product is unknown", file=sys.stderr)
        return
    content = render(job, ResponseFormat(media_type="image/png")).content
    try:
        target.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # affects this image only
            problems(target, f"the overlay cannot be written: {reason(error)}.")
            return
    write_bytes("the overlay", target, content)
    print(f"  overlay: {as_line(target)}", file=sys.stderr)
