"""The errors of training and evaluation; ``moleflow.model.errors`` shows the whole tree."""

from moleflow.model.errors import MoLEFlowError, TaskError

__all__ = ["DatasetError", "DivergenceError", "DuplicateTaskError"]


class DatasetError(MoLEFlowError):
    """Images for training or evaluation are missing, misplaced or unreadable; names the path."""


class DivergenceError(MoLEFlowError):
    """Training produced non-finite values; nothing of it is saved."""


class DuplicateTaskError(TaskError):
    """A product of that name has already been learned, or is named twice."""
