"""The folder for teaching, where it cannot be read or written."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moleflow.model.files.outputs import reason
from moleflow.service.errors import TeachingError

__all__ = ["using"]

_logger = logging.getLogger(__name__)


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a ``TeachingError``; paths are for the log only."""
    try:
        yield
    except OSError as error:
        _logger.error("The folder for teaching %s cannot be used: %s", folder, error)
        raise TeachingError(
            f"The folder for teaching cannot be used ({reason(error)}); see the service's log, make room there, or "
            "check its permissions."
        ) from error
