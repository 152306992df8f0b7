"""The effect of later products on earlier ones: forgetting measure (FM) and backward transfer (BWT).

Let a(l, j) be a figure of category j, higher is better, measured with state l of k. Only categories that were learned
before the last state count.

- Forgetting measure: FM = mean over j of max over l < k of (a(l, j) − a(k, j)). Chaudhry, Dokania, Ajanthan and Torr,
  "Riemannian Walk for Incremental Learning", ECCV 2018, section 3, with the states after which j had been learned.
- Backward transfer: BWT = mean over j of (a(k, j) − a(j, j)), where a(j, j) is measured with the first state that
  has learned j. Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NIPS 2017, equation 3.

Both have the figure's unit. FM is never below −BWT: it compares with the best state, BWT with the first.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import attrgetter
from statistics import fmean

from moleflow.model.errors import ConfigurationError
from moleflow.training.evaluation.records import METRICS, CategoryFigures, Continual, Evaluation, OverSequence

__all__ = ["HIGHER_IS_BETTER", "backward_transfer", "check_sequence", "continual_figures", "forgetting"]

HIGHER_IS_BETTER = tuple(name for name in METRICS if name not in ("false_alarm_rate", "defect_recall"))
"""Figures for which forgetting is computed. Those at a threshold are left out: one rises when the other falls."""

Table = Sequence[Sequence[float | None]]
"""Rows: states in order of learning; columns: categories; ``None`` if the state has not learned it."""


def forgetting(after: Table) -> float | None:
    """FM of a table of figures; ``None`` if no category was measured before the last state."""
    losses = [max(earlier) - last for earlier, last in _histories(after)]
    return fmean(losses) if losses else None


def backward_transfer(after: Table) -> float | None:
    """BWT of a table of figures; ``None`` if no category was measured before the last state."""
    gains = [last - earlier[0] for earlier, last in _histories(after)]
    return fmean(gains) if gains else None


def check_sequence(states: Sequence[tuple[str, Sequence[str]]], measured: Sequence[str]) -> None:
    """Check that ``states``, each a checkpoint's name and its products, are states of one checkpoint, oldest first.

    Raises:
        ConfigurationError: a state's products do not start with those of the one before, or are not more; or none of
            them is ``measured``.
    """
    for (name, earlier), (later_name, later) in pairwise(states):
        if tuple(later[: len(earlier)]) != tuple(earlier) or len(later) == len(earlier):
            raise ConfigurationError(
                f"{name} (learned: {', '.join(earlier)}) is not an earlier state of {later_name} (learned: "
                f"{', '.join(later)}); give the states in order of learning, oldest first."
            )
    for name, products in states:
        if not set(products) & set(measured):
            raise ConfigurationError(
                f"{name} has learned {', '.join(products)}, none of which is evaluated ({', '.join(measured)}); "
                "leave that state out, or evaluate one of its products too."
            )


def continual_figures(states: Sequence[Evaluation]) -> Continual:
    """FM and BWT of every figure over evaluations of one checkpoint's states, oldest first.

    Raises:
        ConfigurationError: the states are not one sequence, or were not measured on the same images.
    """
    last = states[-1]
    measured = [each.category for each in last.categories]
    check_sequence([(state.checkpoint, state.products) for state in states], measured)
    for state in states[:-1]:
        _check_comparable(state, last)
    categories = sorted(last.categories, key=lambda each: last.products.index(each.category))
    rows = [[state.category(each.category) for each in categories] for state in states]

    def over(read: Callable[[CategoryFigures], float | None]) -> OverSequence:
        after = [[None if each is None else read(each) for each in row] for row in rows]
        return OverSequence(
            after=tuple(map(tuple, after)), forgetting=forgetting(after), backward_transfer=backward_transfer(after)
        )

    routed = {name: over(attrgetter(f"routed.{name}")) for name in HIGHER_IS_BETTER}
    named = {name: over(attrgetter(f"named.{name}")) for name in HIGHER_IS_BETTER}
    return Continual(
        states=tuple(state.products for state in states),
        categories=tuple(each.category for each in categories),
        routed=routed | {"routing_accuracy": over(attrgetter("routing_accuracy"))},
        named=named,
    )


def _histories(after: Table) -> list[tuple[list[float], float]]:
    """For each category that counts: its figures before the last state, and in the last."""
    histories = []
    for *earlier, last in zip(*after, strict=True):
        known = [value for value in earlier if value is not None]
        if known and last is not None:
            histories.append((known, last))
    return histories


def _check_comparable(state: Evaluation, last: Evaluation) -> None:
    """Check that categories learned by both were measured with the same protocol and number of images."""
    if state.protocol != last.protocol:
        raise ConfigurationError(
            f"{state.checkpoint} was evaluated by another protocol ({state.protocol}, not {last.protocol}); evaluate "
            "it again."
        )
    for each in last.categories:
        if each.category not in state.products:
            continue
        measured = state.category(each.category)
        if measured is None or _images(measured) != _images(each):
            found = "none" if measured is None else f"{measured.good} good and {measured.defective} defective"
            raise ConfigurationError(
                f"the evaluation of {state.checkpoint} counts {found} of {each.category!r}'s "
                f"{each.good} good and {each.defective} defective test images; evaluate that state again, on the "
                "same data."
            )


def _images(figures: CategoryFigures) -> tuple[int, int, int]:
    return figures.good, figures.defective, figures.masked
