"""Every error that MoLE-Flow raises on purpose, as one tree.

Each message is a sentence that says what was wrong, the value, and what to do about it::

    MoLEFlowError
    ├── ConfigurationError      a setting, option or preset that cannot be used
    ├── DeviceError             the wanted device or precision is not there
    ├── BackboneError           a backbone or its weights cannot be had
    ├── DatasetError            images for training or evaluation are missing or unreadable
    ├── DivergenceError         training came to numbers that are not finite
    ├── CheckpointError         a checkpoint cannot be used
    │   ├── CheckpointNotFoundError
    │   ├── CheckpointFormatError     not a MoLE-Flow checkpoint, truncated, or foreign
    │   ├── CheckpointVersionError    written by a newer (or unknown) format version
    │   └── CheckpointDigestError     the bytes differ from those that were written
    ├── TaskError               a request about a learned product cannot be met
    │   ├── UnknownTaskError
    │   └── DuplicateTaskError
    ├── PredictionError         the model came to no verdict about an image
    │   └── ExpertError               for the expert of the image's product is damaged
    ├── ImageError              an image cannot be used
    │   ├── UnsupportedImageError     not an image, or a kind that is not read
    │   └── ImageTooLargeError        more bytes or pixels than the limits allow
    └── OverloadedError         the service's queue is full
"""

__all__ = [
    "BackboneError",
    "CheckpointDigestError",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointNotFoundError",
    "CheckpointVersionError",
    "ConfigurationError",
    "DatasetError",
    "DeviceError",
    "DivergenceError",
    "DuplicateTaskError",
    "ExpertError",
    "ImageError",
    "ImageTooLargeError",
    "MoLEFlowError",
    "OverloadedError",
    "PredictionError",
    "TaskError",
    "UnknownTaskError",
    "UnsupportedImageError",
    "describe",
    "one_line",
]


_LONGEST_QUOTE = 300
"""Characters of foreign text that a message repeats at most: a hostile file has it say megabytes."""


def one_line(error: object) -> str:
    """What a library's error says, in one line of bounded length, to be quoted inside a message of ours.

    What no terminal shows, or what drives it, is replaced: the text may repeat what a hostile file holds.
    """
    text = " ".join(str(error).split())
    plain = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:_LONGEST_QUOTE])
    return plain if len(text) <= _LONGEST_QUOTE else plain + "…"


_MOST_QUOTED = 300
"""Most characters of a library's error that are quoted; some append a page of advice."""


def describe(error: BaseException) -> str:
    """Type and message of any error on one short line. Never raises, whatever the error does when it is printed."""
    name = type(error).__name__
    try:
        said = one_line(error)
    except Exception:
        return name
    return f"{name}: {said[:_MOST_QUOTED]}" if said else name


class MoLEFlowError(Exception):
    """Base of every error raised on purpose; ``str(error)`` is fit to be shown to a user."""


class ConfigurationError(MoLEFlowError):
    """A setting, option or preset that cannot be used; names the key, the value and what would be valid."""


class DeviceError(MoLEFlowError):
    """The wanted device or precision is not available here."""


class BackboneError(MoLEFlowError):
    """A backbone, or its weights, cannot be had."""


class DatasetError(MoLEFlowError):
    """Images for training or evaluation are missing, misplaced or unreadable; names the path."""


class DivergenceError(MoLEFlowError):
    """Training came to numbers that are not finite; nothing of it is kept."""


class CheckpointError(MoLEFlowError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """There is no file at the checkpoint's path."""


class CheckpointFormatError(CheckpointError):
    """The file is no MoLE-Flow checkpoint: foreign, truncated, or with a broken header."""


class CheckpointVersionError(CheckpointError):
    """The checkpoint was written in a format version that this program does not read."""


class CheckpointDigestError(CheckpointError):
    """The tensors in the file differ from those that were written."""


class TaskError(MoLEFlowError):
    """A request about a learned product cannot be met."""


class UnknownTaskError(TaskError):
    """No product of that name was learned."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name, self.known = name, known
        listed = ", ".join(known) if known else "none yet"
        super().__init__(f"No product named {one_line(repr(name))} was learned; learned: {listed}.")


class DuplicateTaskError(TaskError):
    """A product of that name was learned before."""


class PredictionError(MoLEFlowError):
    """The model came to no verdict about an image, for a fault of its own."""


class ExpertError(PredictionError):
    """The expert of the product ``task`` cannot be read, or gives numbers that are not finite; ``reason`` says which.

    It concerns the images of that product alone.
    """

    def __init__(self, task: str, reason: str) -> None:
        self.task, self.reason = task, reason
        super().__init__(
            f"The expert of product {task!r} is damaged, and no image of it can be judged: {reason} "
            "Other products are not concerned."
        )


class ImageError(MoLEFlowError):
    """An image cannot be used."""


class UnsupportedImageError(ImageError):
    """The bytes are no image, a damaged one, or of a kind that is not read."""


class ImageTooLargeError(ImageError):
    """The image has more bytes or pixels than the limits allow."""


class OverloadedError(MoLEFlowError):
    """The service's queue is full; try again after ``retry_after_seconds``."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)
