"""The way of a picture without a service: decode, predict, encode, by the functions that the service calls."""

from collections.abc import Sequence
from time import perf_counter

from model.detector import Detector
from model.picture import MAX_PIXELS
from model.results import Finding
from service.decode import Decoded, decode
from service.render import AnswerForm, Job, render

__all__ = ["answer", "pictures_per_second"]


def answer(detector: Detector, pictures: Sequence[bytes], form: AnswerForm) -> list[bytes]:
    """Decode the files, judge them as one batch, and encode each answer; one after another, in this thread."""
    decoded = [decode(data, detector.preprocessing, max_pixels=MAX_PIXELS) for data in pictures]
    findings = detector.predict([each.model_input for each in decoded])
    together = zip(pictures, decoded, findings, strict=True)
    return [render(job_of(detector, *each), form).content for each in together]


def job_of(detector: Detector, data: bytes, decoded: Decoded, finding: Finding) -> Job:
    """What an answer is made of; nothing is timed."""
    return Job(
        data=data, width=decoded.width, height=decoded.height, finding=finding, checkpoint=detector.checkpoint,
        forced=False, decode_seconds=0.0, queue_seconds=0.0, inference_seconds=0.0,
    )  # fmt: skip


def pictures_per_second(
    detector: Detector, pictures: Sequence[bytes], form: AnswerForm, batch: int, seconds: float
) -> float:
    """Take the pictures in turn, ``batch`` at a time, for at least ``seconds``."""
    started, count = perf_counter(), 0
    while perf_counter() - started < seconds:
        answer(detector, [pictures[(count + number) % len(pictures)] for number in range(batch)], form)
        count += batch
    return count / (perf_counter() - started)
