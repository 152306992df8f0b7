"""p-values and thresholds from the scores of held-out good images.

For a new *good* image of the same product, a calibration gives the probability of a score of at least ``s`` (the
p-value), and the score that it exceeds with a given probability (the threshold). Let there be ``n`` held-out scores,
``u`` the (k+1)-th highest, and ``S`` the sum of the ``k`` excesses over ``u``.

- Up to ``u`` only exchangeability is assumed: a new score exceeds the i-th highest with probability i/(n+1), the
  conformal p-value (Vovk, Gammerman and Shafer 2005, chapter 2; Bates et al. 2023, "Testing for outliers with
  conformal p-values", equation 1), linearly interpolated between scores.
- Beyond ``u`` a tail is fitted, since ``n`` scores cannot resolve rates below 1/(n+1). Excesses over a high level are
  nearly exponential for distributions in the Gumbel domain of attraction, which includes those of sums and maxima
  (Pickands 1975; Coles 2001, section 4.2). For exponential excesses of *unknown mean*, the probability that a new
  excess is above ``x`` given k others is ``(1 + x/S)^-k``: their ratio is distributed as F(2, 2k) / k. This predictive
  tail is generalised Pareto with shape 1/k: heavy for few scores, exponential in the limit, so that the false-alarm
  rate holds on average for every ``n``.

For a rate of 1 % the threshold lies 15 mean excesses above ``u`` with 3 scores, 8.1 with 5, 4.8 with 20 and 2.8 with
200, while the highest score is expected 1.5, 2.1, 2.8 and 3.9 above it. The rate holds on average over draws of the
good images; few images cost power against small defects. Tails heavier than exponential give more false alarms than
requested, lighter ones fewer.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from moleflow.model.errors import ConfigurationError

__all__ = ["DEFAULT_FALSE_ALARM_RATE", "MIN_SCORES", "Calibration", "TaskCalibration", "check_rate"]

DEFAULT_FALSE_ALARM_RATE = 0.01
"""Fraction of good images that may be called anomalous, by default."""

MIN_SCORES = 2
"""Fewest scores that a tail can be fitted to."""

_TAIL_FACTOR = 2.0
"""The tail has this many times √n scores: bias and variance of the fit both vanish as n grows."""

_LEAST_SPREAD = 1e-6
"""Lower bound of the mean excess, relative to the largest score: float32 rounding. For scores that are all equal."""


def tail_count(count: int) -> int:
    """k, the number of tail scores among ``count``: 2 of 3, 4 of 5, 9 of 20, 28 of 200."""
    return max(1, min(count - 1, round(_TAIL_FACTOR * math.sqrt(count))))


def check_rate(rate: float) -> float:
    """``rate`` itself if it is in (0, 1); else ``ConfigurationError``."""
    if not 0 < rate < 1:
        raise ConfigurationError(
            f"the false-alarm rate cannot be {rate!r}; it must be above 0 and below 1, such as 0.01."
        )
    return rate


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The distribution of one kind of score over good images; see the module's docstring.

    ``scores`` are the held-out scores, ascending, ``(n,)`` float64; ``tail`` is k; ``start`` is u; ``excess`` is S.
    """

    scores: np.ndarray
    tail: int
    start: float
    excess: float

    @classmethod
    def fit(cls, scores: Iterable[float]) -> Self:
        """Fit to at least ``MIN_SCORES`` finite scores, in any order; else ``ValueError``."""
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
        """Probability that a new good image scores at least ``score``, in [0, 1].

        Values far below 1/(n+1) are extrapolated: an order of magnitude at best.
        """
        count = len(self.scores)
        if score > self.start:
            return (self.tail + 1) / (count + 1) * math.exp(-self.tail * math.log1p((score - self.start) / self.excess))
        if score < self.scores[0]:
            return 1 - math.exp((score - float(self.scores[0])) / self._mean_excess) / (count + 1)
        # Linear between the held-out scores, whose chances are count/(count + 1), …, 1/(count + 1). By hand: this is
        # called for every candidate of every image, and NumPy takes four times as long.
        place = bisect_right(self.scores, score) - 1
        chance = (count - place) / (count + 1)
        low = float(self.scores[place])
        if score == low:  # the slope may be infinite, between scores that are almost equal
            return chance
        high = float(self.scores[place + 1])
        return ((count - place - 1) / (count + 1) - chance) / (high - low) * (score - low) + chance

    def threshold(self, rate: float) -> float:
        """The score that a new good image exceeds with probability ``rate``, in (0, 1).

        Raises:
            ConfigurationError: ``rate`` is not in (0, 1).
        """
        check_rate(rate)
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
        """Mean excess of the tail; also the scale below the lowest score, where nothing is decided."""
        return self.excess / self.tail


@dataclass(frozen=True, slots=True, eq=False)
class TaskCalibration:
    """Calibrations of one product's four statistics over its held-out good images.

    ``scores``: image scores. ``peaks``: maxima of pixel maps. ``grounds``: background NLLs
    (``moleflow.model.routing.novelty``). ``distances``: the router's.
    """

    scores: Calibration
    peaks: Calibration
    grounds: Calibration
    distances: Calibration

    @classmethod
    def fit(cls, held_out: Mapping[str, Iterable[float]]) -> Self:
        """Fit to the held-out values under each field's name. ``ValueError`` as ``Calibration.fit``."""
        return cls(
            scores=Calibration.fit(held_out["scores"]),
            peaks=Calibration.fit(held_out["peaks"]),
            grounds=Calibration.fit(held_out["grounds"]),
            distances=Calibration.fit(held_out["distances"]),
        )
