"""The one error that only a running service knows."""

from model.errors import MoLEFlowError

__all__ = ["NotReadyError"]


class NotReadyError(MoLEFlowError):
    """The service takes no pictures at this moment: its model is being loaded, failed to load, or it is stopping."""
