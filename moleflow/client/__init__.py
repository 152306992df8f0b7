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
    JobFailedError,
    ResponseError,
    ServiceFailedError,
    UnreachableError,
    UnreadableFileError,
)
from moleflow.client.exchange import FolderResult, Image, decode_map
from moleflow.client.synchronous import Client
from moleflow.service.responses.schemas import (
    AnomalyMap,
    FeedbackResponse,
    ImageResult,
    PredictionResponse,
    Problem,
    ReadyResponse,
    TasksResponse,
)
from moleflow.service.responses.teaching import Job, TeachResult

__all__ = [
    "AnomalyMap",
    "AsyncClient",
    "BusyError",
    "Client",
    "ClientError",
    "FeedbackResponse",
    "FolderResult",
    "Image",
    "ImageRefusedError",
    "ImageResult",
    "InvalidRequestError",
    "Job",
    "JobFailedError",
    "PredictionResponse",
    "Problem",
    "ReadyResponse",
    "ResponseError",
    "ServiceFailedError",
    "TasksResponse",
    "TeachResult",
    "UnreachableError",
    "UnreadableFileError",
    "decode_map",
]
