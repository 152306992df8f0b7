"""The errors of the client. All derive from ``ClientError``; those that the service gave carry its problem document."""

from moleflow.model.errors import MoLEFlowError
from moleflow.service.responses.schemas import Problem
from moleflow.service.responses.teaching import Job

__all__ = [
    "BusyError",
    "ClientError",
    "ImageRefusedError",
    "InvalidRequestError",
    "JobFailedError",
    "ResponseError",
    "ServiceFailedError",
    "UnreachableError",
    "UnreadableFileError",
    "error_of",
]


class ClientError(MoLEFlowError):
    """A request of the client failed."""


class UnreadableFileError(ClientError):
    """An image file cannot be read; nothing was sent."""


class UnreachableError(ClientError):
    """The service did not respond: there is no connection, it broke, or the deadline passed."""


class JobFailedError(ClientError):
    """A job ended without having learned its product: it failed or was cancelled. ``job`` says more."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.id} for {job.task!r} is {job.state}: {job.detail}")
        self.job = job


class ResponseError(ClientError):
    """The service responded with an error; ``problem`` is its problem document (RFC 9457).

    Its fields are attributes as well: ``type``, ``title``, ``status``, ``detail`` and ``instance``.
    """

    def __init__(self, problem: Problem, retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"{problem.title} ({problem.status}): {problem.detail}")
        self.problem, self.retry_after_seconds = problem, retry_after_seconds
        self.type, self.title, self.status = problem.type, problem.title, problem.status
        self.detail, self.instance = problem.detail, problem.instance


class ImageRefusedError(ResponseError):
    """The image cannot be decoded, or is too large (413, 415)."""


class InvalidRequestError(ResponseError):
    """The request is wrong: an unknown product, an invalid option, a missing API key (other 4xx)."""


class BusyError(ResponseError):
    """The service is full or not ready (429, 503), and was still so after all attempts or at the deadline."""


class ServiceFailedError(ResponseError):
    """The service or a proxy failed (other 5xx)."""


def error_of(problem: Problem, retry_after_seconds: float) -> ResponseError:
    """The error for a problem document."""
    if problem.status in (429, 503):
        return BusyError(problem, retry_after_seconds)
    if problem.status in (413, 415):
        return ImageRefusedError(problem)
    return (InvalidRequestError if problem.status < 500 else ServiceFailedError)(problem)
