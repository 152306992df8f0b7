"""Ratios, spreads and confidence intervals as the tables show them."""

from collections.abc import Sequence
from statistics import median

__all__ = ["interval", "ratios", "spread"]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One ratio per round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, with minimum and maximum in brackets."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def interval(hits: int, count: int, *, exact: bool = False) -> str:
    """A fraction in percent with its 95 % confidence interval: Wilson's, or Clopper and Pearson's where ``exact``.

    A dash when ``count`` is 0.
    """
    from scipy.stats import binomtest

    if not count:
        return "–"
    low, high = binomtest(hits, count).proportion_ci(method="exact" if exact else "wilson")
    return f"{hits / count:.1%} [{low:.1%}, {high:.1%}]"
