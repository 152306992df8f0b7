"""The errors of the service; ``moleflow.model.errors`` shows the whole tree."""

from moleflow.model.errors import MoLEFlowError

__all__ = [
    "ArchiveError",
    "ClientLimitError",
    "DeadlineError",
    "FeedbackError",
    "JobError",
    "NoKeyError",
    "NotAllowedError",
    "NotChangedError",
    "NotLiveError",
    "NotReadyError",
    "OverloadedError",
    "ProductNameError",
    "ReloadError",
    "TeachingError",
    "TeachingOffError",
    "UnknownAnswerError",
    "UnknownImageError",
    "UnknownJobError",
    "UnknownProductError",
]


class NotLiveError(MoLEFlowError):
    """The service cannot recover and must be restarted."""


class NotReadyError(MoLEFlowError):
    """The service accepts no images at the moment: the model is loading or failing, or the service is stopping."""


class UnknownProductError(MoLEFlowError):
    """The client asked for the map alone, but the image shows no learned product and has no map."""


class ReloadError(MoLEFlowError):
    """The checkpoint file could not be loaded again; the model that was loaded before still serves."""


class NoKeyError(MoLEFlowError):
    """The request has no API key, or one that is not known."""


class NotAllowedError(MoLEFlowError):
    """This client may not do this, such as administer the service."""


class NotChangedError(MoLEFlowError):
    """The checkpoint file could not be changed as requested."""


class UnknownAnswerError(MoLEFlowError):
    """No recent answer has the id for which feedback was given."""


class FeedbackError(MoLEFlowError):
    """The folder for feedback is full or cannot be written."""


class DeadlineError(MoLEFlowError):
    """The answer was not ready by the request's deadline."""


class TeachingOffError(MoLEFlowError):
    """The service has no folder for teaching."""


class TeachingError(MoLEFlowError):
    """The folder for teaching is full, or cannot be read or written."""


class ArchiveError(MoLEFlowError):
    """An uploaded archive cannot be read, or may not be."""


class ProductNameError(MoLEFlowError):
    """No product can be taught under this name."""


class UnknownImageError(MoLEFlowError):
    """The product has no such image to learn from."""


class UnknownJobError(MoLEFlowError):
    """There is no such job."""


class JobError(MoLEFlowError):
    """A job cannot be started or cancelled as requested."""


class OverloadedError(MoLEFlowError):
    """The queue or a memory budget is full; retry after ``retry_after_seconds``."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class ClientLimitError(OverloadedError):
    """The client has more requests than it may have."""
