"""Drift: whether the recent images of a product still score as its good images did when it was learned.

While they do, the p-values of good images are uniform. Images with the verdict *anomalous* are left out, so that a
series of defects is no drift. A product drifts when the Kolmogorov–Smirnov test rejects uniformity, and ceases to when
it no longer does so by far: two limits, so that the state does not flicker.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from scipy.special import kolmogorov

from moleflow.model.verdict.results import Prediction, TaskInfo

__all__ = ["Drift", "DriftState", "ks_p_value", "stability_index"]

WINDOW = 200
"""Recent images of a product that are compared."""

MIN_IMAGES = 100
"""Fewer say nothing."""

_STEP = 20
"""Images of a product between two tests."""

_BEGINS_BELOW, _ENDS_ABOVE = 0.001, 0.05
"""P-values of the test at which drift begins and ends. It is repeated as images arrive, so more than one product in a
thousand seems to drift by chance."""

_BINS = 10
"""Bins of the stability index; ten are customary."""

_LEAST = 1e-4
"""Least fraction of a bin in the stability index, whose logarithm must be finite."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DriftState:
    """What the last test of a product found.

    ``ks_p_value`` is the probability of so different scores without drift, ``stability_index`` how much they differ.
    """

    ks_p_value: float
    stability_index: float
    is_drifting: bool


def ks_p_value(values: np.ndarray, references: int) -> float:
    """P-value of the two-sample Kolmogorov–Smirnov test, by its asymptotic distribution.

    ``values`` ``(n,)`` are p-values by a calibration on ``references`` good images: their distribution against the
    uniform one is that of the scores against the calibration's.
    """
    count = len(values)
    ordered, ranks = np.sort(values), np.arange(count)
    distance = max(((ranks + 1) / count - ordered).max(), (ordered - ranks / count).max())
    return float(kolmogorov(math.sqrt(count * references / (count + references)) * distance))


def stability_index(values: np.ndarray) -> float:
    """The population stability index of p-values ``(n,)`` against the uniform distribution.

    The sum over bins of (a − e)·ln(a/e), for fractions a found and e expected. Under 0.1 is customarily called stable
    and above 0.25 shifted, but without drift it is about 9·(1/n + 1/m) already, after calibration on m images.
    """
    counts, _ = np.histogram(values, _BINS, (0, 1))
    found, expected = np.maximum(counts / len(values), _LEAST), 1 / _BINS
    return float(((found - expected) * np.log(found / expected)).sum())


class _Window:
    """The recent p-values of one product."""

    def __init__(self, info: TaskInfo) -> None:
        self.learned = _identity(info)
        self.state: DriftState | None = None
        self._references = info.held_out_images
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._untested = 0

    def add(self, value: float) -> bool:
        """Add a p-value; whether that begins or ends a drift."""
        self._values.append(value)
        self._untested += 1
        if len(self._values) < MIN_IMAGES or (self.state is not None and self._untested < _STEP):
            return False
        self._untested = 0
        values, was = np.array(self._values), self.state is not None and self.state.is_drifting
        chance = ks_p_value(values, self._references)
        drifting = chance < _ENDS_ABOVE if was else chance < _BEGINS_BELOW
        self.state = DriftState(chance, stability_index(values), drifting)
        return drifting != was


class Drift(Collector):
    """The drift of every product, as metrics too. Thread-safe: metrics are collected in a thread of their own.

    ``tasks`` returns the products that are served; others are forgotten.
    """

    def __init__(self, tasks: Callable[[], Sequence[TaskInfo]]) -> None:
        self._tasks = tasks
        self._served: Sequence[TaskInfo] = ()
        self._infos: dict[str, TaskInfo] = {}
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def observe(self, found: Prediction) -> None:
        """Take in a result at the service's false-alarm rate."""
        if found.is_anomalous:
            return
        # Of good images, a fraction of the rate is left out with the defects; the others are uniform above it.
        rate = found.false_alarm_rate
        with self._lock:
            info = self._learned().get(found.task.name)
            if info is None:  # of a checkpoint that was replaced meanwhile
                return
            window = self._windows.get(info.name)
            if window is None or window.learned != _identity(info):
                window = self._windows[info.name] = _Window(info)
            has_changed, state = window.add((found.p_value - rate) / (1 - rate)), window.state
        if has_changed and state is not None:
            log = _logger.warning if state.is_drifting else _logger.info
            log(
                "Product %r %s: Kolmogorov–Smirnov p-value %.2g, stability index %.2f.",
                info.name,
                "drifts" if state.is_drifting else "no longer drifts",
                state.ks_p_value,
                state.stability_index,
            )

    def states(self) -> dict[str, DriftState]:
        """The state of every served product with enough images."""
        with self._lock:
            learned = {name: _identity(info) for name, info in self._learned().items()}
            kept = {name: each for name, each in self._windows.items() if learned.get(name) == each.learned}
            self._windows = kept
            return {name: window.state for name, window in kept.items() if window.state is not None}

    def _learned(self) -> dict[str, TaskInfo]:
        """The served products by name."""
        served = self._tasks()
        if served is not self._served:
            self._served, self._infos = served, {info.name: info for info in served}
        return self._infos

    def describe(self) -> Iterator[Metric]:
        """The metrics without values, so that registering them needs no products."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """The metrics, for the registry."""
        families = self._families()
        for name, state in self.states().items():
            families["drifting"].add_metric([name], state.is_drifting)
            families["ks"].add_metric([name], state.ks_p_value)
            families["psi"].add_metric([name], state.stability_index)
        yield from families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        texts = {
            "drifting": (
                "moleflow_drifting",
                "1 if recent good images of the product score otherwise than learned",
            ),
            "ks": ("moleflow_drift_ks_p_value", "p-value of the test whether they do"),
            "psi": ("moleflow_drift_stability_index", "population stability index of their p-values"),
        }
        return {key: GaugeMetricFamily(name, text, labels=["task"]) for key, (name, text) in texts.items()}


def _identity(info: TaskInfo) -> tuple[str, str]:
    """What changes when a product is learned or calibrated again."""
    return info.sha256, info.profile_sha256
