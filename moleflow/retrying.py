"""When to try a request again: exponential backoff, and the server's wish in ``Retry-After``."""

import random
import time
from email.utils import parsedate_to_datetime

__all__ = ["backoff_seconds", "retry_after_seconds"]

_FIRST_SECONDS, _LONGEST_SECONDS = 0.5, 30.0
"""Longest delay before the second attempt, and before any."""


def backoff_seconds(attempt: int) -> float:
    """How long to wait after the attempt with this number, counted from 0.

    Doubles each time, with a random part so that clients that failed together do not return together.
    """
    longest = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(attempt, 16))
    return longest * random.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None) -> float:
    """The seconds that ``Retry-After`` asks for, as a number or a date (RFC 9110, section 10.2.3); 0 without one."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header[:9])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
