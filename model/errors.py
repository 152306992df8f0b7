"""The errors that MoLE-Flow raises on purpose, as one tree; each layer defines its own.

Each message says what was wrong, the value, and what to do::

    MoLEFlowError
    ├── ConfigurationError      invalid setting, option or preset
    │   └── CheckpointInUseError      another process writes to the checkpoint
    ├── DeviceError             device or precision not available
    ├── BackboneError           backbone or its weights not available
    ├── CheckpointError         unusable checkpoint
    │   ├── CheckpointNotFoundError
    │   ├── CheckpointFormatError     not a MoLE-Flow checkpoint, or truncated
    │   ├── CheckpointVersionError    unsupported format version
    │   └── CheckpointDigestError     the contents do not match their digest
    ├── TaskError               invalid product name for this operation
    │   ├── UnknownTaskError
    │   └── training: DuplicateTaskError
    ├── PredictionError         an image could not be scored
    │   └── ExpertError               the expert of the image's product is damaged
    ├── ImageError              unusable image
    │   ├── UnsupportedImageError     not an image, damaged, or an unsupported format
    │   └── ImageTooLargeError        more bytes or pixels than allowed
    ├── training: DatasetError      images for training or evaluation missing or unreadable
    ├── training: DivergenceError   non-finite values during training
    ├── service: OverloadedError    no place or no memory is free at this moment
    ├── service: NotReadyError      no images are accepted at this moment
    ├── service: NotLiveError       no images are accepted until a restart
    ├── service: ReloadError        the changed checkpoint cannot be loaded; the old one still serves
    ├── service: UnknownAnswerError  no recent answer has the id for which feedback was given
    ├── service: FeedbackError      the folder for feedback is full or cannot be written
    ├── service: TeachingOffError, TeachingError  no folder for teaching; it is full or cannot be used
    ├── service: ArchiveError       an uploaded archive cannot be read
    ├── service: ProductNameError   no product can be taught under this name
    ├── service: UnknownImageError, UnknownJobError  no such image to learn from; no such job
    ├── service: JobError           a job cannot be started or cancelled as requested
    ├── service: NotChangedError    the checkpoint's products cannot be changed as requested
    ├── service: NotAllowedError    the client may not administer the service
    └── service: UnknownProductError  a map was requested of an image of an unknown product

Those of training are in ``moleflow.training.errors``, those of the service in ``moleflow.service.errors``.
"""

__all__ = [
    "BackboneError",
    "CheckpointDigestError",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointInUseError",
    "CheckpointNotFoundError",
    "CheckpointVersionError",
    "ConfigurationError",
    "DeviceError",
    "ExpertError",
    "ImageError",
    "ImageTooLargeError",
    "MoLEFlowError",
    "PredictionError",
    "TaskError",
    "UnknownTaskError",
    "UnsupportedImageError",
    "describe",
    "one_line",
]


_LONGEST_QUOTE = 300
"""Most characters of foreign text in a message; a hostile file can make a library quote megabytes, and some libraries
append a page of advice."""


def one_line(error: object) -> str:
    """A library's error message on one line of bounded length, safe to quote.

    Unprintable characters are replaced: the text may contain bytes of a hostile file, such as terminal escapes.
    """
    text = " ".join(str(error).split())
    plain = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:_LONGEST_QUOTE])
    return plain if len(text) <= _LONGEST_QUOTE else plain + "…"


def describe(error: BaseException) -> str:
    """Type and message of any error on one short line. Never raises, even if the error's ``__str__`` does."""
    name = type(error).__name__
    try:
        said = one_line(error)
    except Exception:
        return name
    return f"{name}: {said}" if said else name


class MoLEFlowError(Exception):
    """Base of every error raised on purpose; ``str(error)`` can be shown to the user."""


class ConfigurationError(MoLEFlowError):
    """An invalid setting, option or preset; names the key, the value and what is valid."""


class CheckpointInUseError(ConfigurationError):
    """Another process is training into a checkpoint, or changing its products."""


class DeviceError(MoLEFlowError):
    """The requested device or precision is not available."""


class BackboneError(MoLEFlowError):
    """A backbone or its weights are not available."""


class CheckpointError(MoLEFlowError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """There is no file at the checkpoint's path."""


class CheckpointFormatError(CheckpointError):
    """The file is not a MoLE-Flow checkpoint, is truncated, or has a broken header."""


class CheckpointVersionError(CheckpointError):
    """The checkpoint has a format version that this program does not support."""


class CheckpointDigestError(CheckpointError):
    """The file's contents do not match their digest."""


class TaskError(MoLEFlowError):
    """A product name cannot be used for this operation."""


class UnknownTaskError(TaskError):
    """No product of that name has been learned."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name, self.known = name, known
        listed = ", ".join(known) if known else "none yet"
        super().__init__(f"No product named {one_line(repr(name))} was learned; learned: {listed}.")


class PredictionError(MoLEFlowError):
    """The model could not score an image; the image is not at fault."""


class ExpertError(PredictionError):
    """The expert of product ``task`` cannot be read, or gives non-finite scores; ``reason`` says which.

    Other products are not affected.
    """

    def __init__(self, task: str, reason: str) -> None:
        self.task, self.reason = task, reason
        super().__init__(
            f"The expert of product {task!r} is damaged, so its images cannot be scored: {reason} "
            "Other products are not affected."
        )


class ImageError(MoLEFlowError):
    """An image cannot be used."""


class UnsupportedImageError(ImageError):
    """The bytes are not an image, or a damaged one, or of an unsupported format."""


class ImageTooLargeError(ImageError):
    """The image has more bytes or pixels than allowed."""
