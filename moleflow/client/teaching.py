"""What both clients share for teaching: requests, and what the end of a job means. Nothing here waits or sends."""

from collections.abc import Iterable, Iterator
from typing import Literal
from urllib.parse import quote

from moleflow.client.errors import JobFailedError
from moleflow.client.exchange import Call, Image, encoded_image, image_name
from moleflow.service.responses.teaching import Job

__all__ = ["POLL_SECONDS", "checked", "feedback_call", "has_ended", "job_call", "teach_calls", "train_call"]

POLL_SECONDS = 1.0
"""Between two looks at a job; the training tells its progress about as often."""

_MOST_IMAGES, _MOST_BYTES = 16, 32 * 1024**2
"""Of one request, unless a single image has more."""


def feedback_call(identifier: str, verdict: Literal["good", "defect"], task: str | None) -> Call:
    """The request that tells the true verdict of an answer."""
    told = {"verdict": verdict} if task is None else {"verdict": verdict, "task": task}
    return Call("POST", f"/predictions/{quote(identifier, safe='')}/feedback", {"json": told})


def teach_calls(task: str, images: Iterable[Image]) -> Iterator[Call]:
    """The requests that add good images, each with a few. Raises ``UnreadableFileError`` and ``ValueError``."""
    files: list[tuple[str, tuple[str, bytes]]] = []
    size = 0
    for image in images:
        data = encoded_image(image)
        if files and (len(files) == _MOST_IMAGES or size + len(data) > _MOST_BYTES):
            yield _teach_call(task, files)
            files, size = [], 0
        files.append(("file", (image_name(image), data)))
        size += len(data)
    if files:
        yield _teach_call(task, files)


def _teach_call(task: str, files: list[tuple[str, tuple[str, bytes]]]) -> Call:
    return Call("POST", f"/tasks/{quote(task, safe='')}/images", {"files": files})


def train_call(task: str, epochs: int | None) -> Call:
    """The request that starts a job."""
    return Call(
        "POST", f"/tasks/{quote(task, safe='')}:train", {"params": {} if epochs is None else {"epochs": epochs}}
    )


def job_call(identifier: str, method: Literal["GET", "DELETE"] = "GET") -> Call:
    """The request for a job, or to cancel it."""
    return Call(method, f"/jobs/{quote(identifier, safe='')}")


def has_ended(job: Job) -> bool:
    """Whether a job does not change any more."""
    return job.state not in ("waiting", "running")


def checked(job: Job) -> Job:
    """A job that has learned its product. Raises ``JobFailedError`` for one that ended otherwise."""
    if job.state != "done":
        raise JobFailedError(job)
    return job
