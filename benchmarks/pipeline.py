"""The way of an image without a service: decode, predict, encode, by the functions that the service calls."""

from collections.abc import Sequence
from time import perf_counter

from moleflow.model.detector import Detector
from moleflow.model.images.decode import MAX_PIXELS, DecodedImage, open_for_model
from moleflow.model.verdict.results import Finding
from moleflow.service.responses.render import Job, ResponseFormat, render

__all__ = ["answer", "images_per_second"]


def answer(detector: Detector, rgb_images: Sequence[bytes], form: ResponseFormat) -> list[bytes]:
    """Decode the files, judge them as one batch, and encode each answer; one after another, in this thread."""
    decoded = [open_for_model(data, detector.preprocessing.image_size, max_pixels=MAX_PIXELS) for data in rgb_images]
    findings = detector.predict([each.pixels for each in decoded])
    together = zip(rgb_images, decoded, findings, strict=True)
    return [render(job_of(detector, *each), form).content for each in together]


def job_of(detector: Detector, data: bytes, decoded: DecodedImage, finding: Finding) -> Job:
    """What an answer is made of; nothing is timed."""
    return Job(
        data=data, width=decoded.width, height=decoded.height, finding=finding, checkpoint=detector.checkpoint,
        forced=False, decode_seconds=0.0, queue_seconds=0.0, inference_seconds=0.0,
    )  # fmt: skip


def images_per_second(
    detector: Detector, rgb_images: Sequence[bytes], form: ResponseFormat, batch: int, seconds: float
) -> float:
    """Take the images in turn, ``batch`` at a time, for at least ``seconds``."""
    started, count = perf_counter(), 0
    while perf_counter() - started < seconds:
        answer(detector, [rgb_images[(count + number) % len(rgb_images)] for number in range(batch)], form)
        count += batch
    return count / (perf_counter() - started)
