"""The outcome of every request of the hostile load."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.hostile.client import Reply

__all__ = ["BAD", "Disturbance", "Ledger", "Trouble", "settle"]

RIGHT, REFUSED, INJECTED, ABORTED, CLOSED = "right", "refused", "injected", "aborted", "closed"
"""Answered as expected; refused as documented; failed as injected; left by the client; a connection without a whole
request, closed by the service."""

WRONG, HUNG, LOST, FAILED, UNDOCUMENTED = "wrong", "hung", "lost", "failed", "undocumented"
"""Another answer than expected; none in time; connection lost; a 5xx; an undocumented answer."""

BAD = (HUNG, WRONG, FAILED, LOST, UNDOCUMENTED)
"""Outcomes that fail a gate."""

TOO_SLOW, OVERLOADED = 408, 429
"""Refusals that do not depend on the request: it may be tried again."""

REFUSALS = frozenset({400, 404, 405, 406, TOO_SLOW, 411, 413, 414, 415, 421, 422, OVERLOADED, 431})
"""Statuses of the service's refusals; the sender says which of them fit."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """An outcome that only a disturbance at the same time can explain."""

    activity: str
    sent: str
    outcome: str
    detail: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What was done to the service from outside or by an injected failure, and when (monotonic clock)."""

    kind: str
    start: float
    end: float


@dataclass(slots=True)
class Ledger:
    """One role's outcomes; see ``settle``. ``inputs`` counts sent images; a probe is its start, seconds and status."""

    inputs: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    troubles: list[Trouble] = field(default_factory=list)
    probes: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)

    def count(self, activity: str, outcome: str) -> None:
        """Count an outcome that needs no explanation."""
        self.counts[activity, outcome] += 1

    def trouble(self, activity: str, sent: str, outcome: str, detail: str, start: float) -> None:
        """Record an outcome that needs one."""
        self.troubles.append(Trouble(activity, sent, outcome, detail, start, time.monotonic()))

    def judge(
        self,
        activity: str,
        sent: str,
        reply: Reply,
        start: float,
        *,
        expected: Iterable[int] = REFUSALS,
        right: Iterable[int] = (200,),
        fails: bool = False,
    ) -> None:
        """Count an answer by its status alone. ``fails``: a 5xx with a problem document was injected."""
        self.statuses[reply.status] += 1
        text = f"{reply.status} {reply.body[:300]!r}"
        if reply.status in right:
            self.count(activity, RIGHT)
        elif reply.status >= 500:
            if fails and reply.is_problem:
                self.count(activity, INJECTED)
            else:
                self.trouble(activity, sent, FAILED, text, start)
        elif reply.status in expected and (reply.is_problem or reply.status == 400):
            self.count(activity, REFUSED)  # what is not HTTP gets its 400 from the layer below the application
        else:
            self.trouble(activity, sent, UNDOCUMENTED, text, start)

    def merge(self, other: "Ledger") -> None:
        """Add another role's outcomes."""
        self.inputs += other.inputs
        self.counts += other.counts
        self.statuses += other.statuses
        self.troubles += other.troubles
        for name, rows in other.probes.items():
            self.probes.setdefault(name, []).extend(rows)


def settle(ledger: Ledger, disturbances: Sequence[Disturbance]) -> list[Trouble]:
    """Count outcomes that a disturbance explains as injected; returns the others.

    A disturbance explains that a request failed, was lost or was refused meanwhile, but never a wrong answer or a hang.
    """
    left = []
    for trouble in ledger.troubles:
        explained = trouble.outcome in (FAILED, LOST, UNDOCUMENTED) and any(
            trouble.start <= one.end and one.start <= trouble.end for one in disturbances
        )
        if explained:
            ledger.count(trouble.activity, INJECTED)
        else:
            ledger.count(trouble.activity, trouble.outcome)
            left.append(trouble)
    return left
