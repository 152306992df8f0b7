"""Errors that only the service raises."""

from moleflow.model.errors import MoLEFlowError

__all__ = ["NotLiveError", "NotReadyError", "UnknownProductError"]


class NotLiveError(MoLEFlowError):
    """The service cannot recover and must be restarted."""


class NotReadyError(MoLEFlowError):
    """The service accepts no images at the moment: the model is loading or failing, or the service is stopping."""


class UnknownProductError(MoLEFlowError):
    """The client asked for the map alone, but the image shows no learned product and has no map."""
