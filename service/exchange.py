"""What the log says of a request: its id, the trace that it belongs to, and what was found.

The id is the client's ``X-Request-ID``, or a new one if there is none that can be logged safely. The trace is that of
``traceparent`` (W3C Trace Context), unless OpenTelemetry begins one.
"""

import re
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from moleflow.model.verdict.results import Finding, Prediction

__all__ = ["REQUEST_ID", "Exchange", "current", "random_id", "trace_id_of"]

REQUEST_ID = "X-Request-ID"
"""Header of requests and of responses."""

_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
"""What proxies and tracing libraries send; nothing that a log or a header could take for something else."""

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
"""W3C Trace Context, section 3.2; only later versions than 00 may have more parts."""


def random_id() -> str:
    """32 hexadecimal digits."""
    return uuid.uuid4().hex


@dataclass(slots=True)
class Exchange:
    """One request, while it is answered. Its fields are those of its line in the log."""

    request_id: str
    is_own_id: bool
    """Whether the service made the id, so that it may be an answer's as well."""
    trace_id: str | None = None
    product: str | None = None
    verdict: str | None = None
    score: float | None = None
    new_id: Callable[[], str] = random_id
    """Makes ids of requests and answers."""

    @classmethod
    def of(cls, given_ids: Sequence[str], new_id: Callable[[], str] = random_id) -> "Exchange":
        """The exchange of a request with these values of ``X-Request-ID``."""
        if len(given_ids) == 1 and _ID.fullmatch(given_ids[0]):
            return cls(given_ids[0], is_own_id=False, new_id=new_id)
        return cls(new_id(), is_own_id=True, new_id=new_id)

    def answer_id(self) -> str:
        """An id for the answer to the only image of this request."""
        return self.request_id if self.is_own_id else self.new_id()

    def note(self, finding: Finding) -> None:
        """Note what was found in the only image of this request."""
        self.verdict = finding.verdict.value
        if isinstance(finding, Prediction):
            self.product, self.score = finding.task.name, float(finding.score)


def trace_id_of(traceparents: Sequence[str]) -> str | None:
    """The trace of a ``traceparent`` header; ``None`` if it is not valid, which the standard says to ignore."""
    found = _TRACEPARENT.fullmatch(traceparents[0]) if len(traceparents) == 1 else None
    if found is None or (found[1] == "00" and found[3]):
        return None
    return found[2]


current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""The request on whose behalf code runs, in the event loop."""
