"""The deadline of a request: its own header, or else the setting."""

import re

from fastapi import HTTPException
from starlette.requests import Request

from moleflow.service.engine.deadline import Deadline
from moleflow.service.settings import Settings

__all__ = ["MAX_MILLISECONDS", "TIMEOUT_HEADER", "deadline_of"]

TIMEOUT_HEADER = "X-Request-Timeout-Ms"

MAX_MILLISECONDS = 3_600_000
"""An hour, as for the setting."""

_DIGITS = re.compile(r"0*([1-9][0-9]{0,6})", re.ASCII)


def deadline_of(request: Request, settings: Settings) -> Deadline:
    """When the answer is due, counted from now. Raises ``HTTPException`` 400 for an invalid header."""
    given = request.headers.getlist(TIMEOUT_HEADER)
    on_expiry = request.app.state.metrics.given_up.labels("expired").inc
    if not given:
        return Deadline(settings.request_timeout_seconds, "MOLEFLOW_REQUEST_TIMEOUT_SECONDS", on_expiry)
    matched = _DIGITS.fullmatch(given[0].strip())
    if len(given) > 1 or matched is None or int(matched[1]) > MAX_MILLISECONDS:
        raise HTTPException(
            400,
            f"{TIMEOUT_HEADER} is {', '.join(given)[:100]!r}; it must be one number of milliseconds from 1 to "
            f"{MAX_MILLISECONDS:,}, in digits.",
        )
    return Deadline(int(matched[1]) / 1000, TIMEOUT_HEADER, on_expiry)
