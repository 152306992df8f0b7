"""The errors that only the service knows."""

from moleflow.model.errors import MoLEFlowError

__all__ = ["NotLiveError", "NotReadyError", "UnknownProductError"]


class NotLiveError(MoLEFlowError):
    """The service will take no images again before it is restarted."""


class NotReadyError(MoLEFlowError):
    """The service takes no images at this moment: its model is being loaded or fails, or it is stopping."""


class UnknownProductError(MoLEFlowError):
    """An image of no learned product has no map, and the client asked for nothing but the map."""
