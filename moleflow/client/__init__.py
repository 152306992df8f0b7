"""A typed client of the service: ``Client``, and ``AsyncClient`` for asyncio. Needs the extra ``client``, not PyTorch.

Example:
    >>> from moleflow.client import Client
    >>> with Client("http://127.0.0.1:8000") as client:
    ...     found = client.predict("part.png")
    ...     print(found.verdict, found.score, [each.name for each in client.tasks().tasks])
"""

try:
    import httpx as _httpx  # noqa: F401
except ImportError as error:
    raise ImportError("The client needs httpx, which is not installed: pip install 'moleflow[client]'.") from error

from moleflow.client.asynchronous import AsyncClient
from moleflow.client.errors import (
    BusyError,
    ClientError,
    ImageRefusedError,
    InvalidRequestError,
    ResponseError,
    ServiceFailedError,
    UnreachableError,
    UnreadableFileError,
)
from moleflow.client.exchange import FolderResult, Image, decode_map
from moleflow.client.synchronous import Client
from moleflow.service.responses.schemas import (
    AnomalyMap,
    ImageResult,
    PredictionResponse,
    Problem,
    ReadyResponse,
    TasksResponse,
)

__all__ = [
    "AnomalyMap",
    "AsyncClient",
    "BusyError",
    "Client",
    "ClientError",
    "FolderResult",
    "Image",
    "ImageRefusedError",
    "ImageResult",
    "InvalidRequestError",
    "PredictionResponse",
    "Problem",
    "ReadyResponse",
    "ResponseError",
    "ServiceFailedError",
    "TasksResponse",
    "UnreachableError",
    "UnreadableFileError",
    "decode_map",
]
