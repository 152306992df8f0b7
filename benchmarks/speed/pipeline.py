"""What the service does with an image, in this process: decode, predict and encode, by the service's own functions."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.shared.errors import BenchmarkError
from moleflow.model.detector import Detector
from moleflow.model.images.decode import MAX_PIXELS, SUFFIXES, DecodedImage, open_for_model
from moleflow.model.verdict.results import Failure, Finding
from moleflow.service.responses.render import Job, ResponseFormat, render

__all__ = ["image_files", "images_per_second", "job_of"]


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted. ``BenchmarkError`` when it holds none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise BenchmarkError(f"{folder} holds no images; name a folder with some (--images).")
    return found


def _answer(detector: Detector, files: Sequence[bytes], form: ResponseFormat) -> list[bytes]:
    """Decode the files, predict them as one batch, and encode each answer; all in this thread."""
    decoded = [open_for_model(data, detector.preprocessing.image_size, max_pixels=MAX_PIXELS) for data in files]
    findings = detector.predict([each.pixels for each in decoded])
    together = zip(files, decoded, findings, strict=True)
    return [render(job_of(detector, data, image, finding), form).content for data, image, finding in together]


def job_of(detector: Detector, data: bytes, decoded: DecodedImage, finding: Finding | Failure) -> Job:
    """What the service makes an answer from; its durations are 0. Raises the error of a ``Failure``."""
    if isinstance(finding, Failure):
        raise finding.error
    return Job(
        data=data,
        width=decoded.width,
        height=decoded.height,
        finding=finding,
        checkpoint=detector.checkpoint,
        forced=False,
        decode_seconds=0.0,
        queue_seconds=0.0,
        inference_seconds=0.0,
    )


def images_per_second(
    detector: Detector, files: Sequence[bytes], form: ResponseFormat, batch: int, seconds: float
) -> float:
    """Throughput over at least ``seconds``; the files are taken in turn, ``batch`` at a time."""
    started, count = perf_counter(), 0
    while perf_counter() - started < seconds:
        _answer(detector, [files[(count + number) % len(files)] for number in range(batch)], form)
        count += batch
    return count / (perf_counter() - started)
