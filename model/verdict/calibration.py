"""What a raw score means: p-values and thresholds from scores of good images that the model was not fitted to.

A calibration answers two questions about a new *good* image of the same product: how often it scores at least ``s``
(the p-value), and above which score it comes with a wanted probability (the threshold). Let ``n`` held-out scores be
given, ``u`` the (k+1)-th highest of them, and ``S`` the sum of the ``k`` excesses over it.

- Up to ``u`` nothing is assumed but that good images are exchangeable: a new score exceeds the i-th highest with
  probability i/(n+1), the conformal p-value (Vovk, Gammerman and Shafer 2005, chapter 2; Bates et al. 2023, "Testing
  for outliers with conformal p-values", equation 1), interpolated linearly between the given scores.
- Beyond ``u`` a tail is fitted, since ``n`` scores alone know no rate below 1/(n+1). Excesses over a high level are
  nearly exponential for the many distributions in the Gumbel domain, which those of sums and maxima belong to
  (Pickands 1975; Coles 2001, section 4.2). For exponential excesses the chance of a new excess beyond ``x``, given k
  others and *no knowledge of their mean*, is ``(1 + x/S)^-k``: the ratio of the two is distributed as F(2, 2k) / k.
  That predictive tail is a generalised Pareto one of shape 1/k. It is wide where few scores are known and becomes the
  exponential itself with many, so that the false-alarm rate is met on average whatever ``n`` is.

For 1 % the threshold lies 15 mean excesses above ``u`` with 3 scores, 8.1 with 5, 4.8 with 20 and 2.8 with 200, where
the highest score is expected 1.5, 2.1, 2.8 and 3.9 above it: far beyond everything seen, beyond, and within. The rate
is right for the mean over draws of the good images; what few of them cost is power against small defects. Tails
heavier than exponential raise more alarms than wanted, lighter ones fewer.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from moleflow.model.errors import ConfigurationError

__all__ = [
    "DEFAULT_FALSE_ALARM_RATE",
    "MIN_SCORES",
    "Calibration",
    "TaskCalibration",
    "check_rate",
    "tail_count",
]

DEFAULT_FALSE_ALARM_RATE = 0.01
"""Share of good images that may be called anomalous, unless told otherwise."""

MIN_SCORES = 2
"""Fewest scores with a spread to extrapolate from."""

_TAIL_SHARE = 2.0
"""The tail is made of this many times √n scores: of the order that lets variance and bias both vanish as n grows."""

_LEAST_SPREAD = 1e-6
"""Scores that are all alike get a tail with this mean excess, as a share of their size: that of float32's rounding."""


def tail_count(count: int) -> int:
    """k, how many of ``count`` scores make the tail: 2 of 3, 4 of 5, 9 of 20, 28 of 200."""
    return max(1, min(count - 1, round(_TAIL_SHARE * math.sqrt(count))))


def check_rate(rate: float, name: str) -> float:
    """``rate`` itself if it is a probability other than 0 and 1; else ``ConfigurationError`` about ``name``."""
    if not 0 < rate < 1:
        raise ConfigurationError(f"{name} cannot be {rate!r}; it is a probability, above 0 and below 1, as 0.01.")
    return rate


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The distribution of one kind of score over good images; see the module's description.

    ``scores`` are the held-out ones, ascending, ``(n,)`` float64; ``tail`` is k; ``start`` is u; ``excess`` is S.
    """

    scores: np.ndarray
    tail: int
    start: float
    excess: float

    @classmethod
    def fit(cls, scores: Iterable[float]) -> Self:
        """Fit to at least ``MIN_SCORES`` finite scores, in any order. ``ValueError`` otherwise."""
        known = np.sort(np.fromiter(scores, dtype=np.float64))
        if len(known) < MIN_SCORES or not np.isfinite(known).all():
            raise ValueError(f"a calibration needs at least {MIN_SCORES} finite scores; got {known.tolist()}")
        tail = tail_count(len(known))
        start = float(known[-tail - 1])
        least = _LEAST_SPREAD * max(float(np.abs(known).max()), 1.0)
        excess = max(float((known[-tail:] - start).sum()), tail * least)
        known.setflags(write=False)
        return cls(known, tail, start, excess)

    def p_value(self, score: float) -> float:
        """Chance that a new good image scores at least ``score``, in [0, 1]; falls as the score rises.

        Values far below 1/(n+1) are extrapolated, and tell an order of magnitude at best.
        """
        count = len(self.scores)
        if score > self.start:
            return (self.tail + 1) / (count + 1) * math.exp(-self.tail * math.log1p((score - self.start) / self.excess))
        if score < self.scores[0]:
            return 1 - math.exp((score - float(self.scores[0])) / self._mean_excess) / (count + 1)
        chances = np.arange(count, 0, -1) / (count + 1)
        return float(np.interp(score, self.scores, chances))

    def threshold(self, rate: float) -> float:
        """The score that a new good image exceeds with probability ``rate``, in (0, 1).

        Raises:
            ConfigurationError: ``rate`` is no such probability.
        """
        check_rate(rate, "the false-alarm rate")
        count = len(self.scores)
        at_start = (self.tail + 1) / (count + 1)
        if rate <= at_start:
            return self.start + self.excess * math.expm1(math.log(at_start / rate) / self.tail)
        if rate > count / (count + 1):
            return float(self.scores[0]) + self._mean_excess * math.log((1 - rate) * (count + 1))
        chances = np.arange(1, count + 1) / (count + 1)
        return float(np.interp(rate, chances, self.scores[::-1]))

    @property
    def median(self) -> float:
        """The median of the held-out scores."""
        return float(np.median(self.scores))

    @property
    def _mean_excess(self) -> float:
        """Mean excess of the tail; below the lowest score, where nothing is decided, the same scale serves."""
        return self.excess / self.tail


@dataclass(frozen=True, slots=True, eq=False)
class TaskCalibration:
    """What the held-out good images of one product say of its four numbers.

    ``scores``: image scores. ``peaks``: the highest value of each image's pixel map. ``grounds``: the background NLLs
    of patch maps (``moleflow.model.routing.novelty``). ``distances``: the router's.
    """

    scores: Calibration
    peaks: Calibration
    grounds: Calibration
    distances: Calibration

    @classmethod
    def fit(cls, held_out: Mapping[str, Iterable[float]]) -> Self:
        """Fit to the values of held-out images, by the names of the fields. ``ValueError`` as ``Calibration``."""
        return cls(
            scores=Calibration.fit(held_out["scores"]),
            peaks=Calibration.fit(held_out["peaks"]),
            grounds=Calibration.fit(held_out["grounds"]),
            distances=Calibration.fit(held_out["distances"]),
        )
