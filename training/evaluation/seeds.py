"""Mean and spread of an evaluation over several checkpoints, such as three seeds."""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, stdev

from pydantic import Field

from moleflow.model.errors import ConfigurationError
from moleflow.training.evaluation.records import METRICS, CategoryFigures, Evaluation, OverSequence, Protocol, Record

__all__ = ["Spread", "SpreadFigures", "Summary", "summarise"]


class Spread(Record):
    """One figure over several runs."""

    mean: float
    deviation: float = Field(ge=0, description="sample standard deviation, with n − 1")
    runs: tuple[float, ...]


class SpreadFigures(Record):
    """One category, or the mean of all, by figure; ``None`` if a run does not have it."""

    name: str
    routing_accuracy: Spread
    routed: dict[str, Spread | None]
    named: dict[str, Spread | None]


class Summary(Record):
    """The summary of several runs; with ``forgetting`` if every run has earlier states."""

    checkpoints: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...] = Field(description="of each run, by category")
    protocol: Protocol
    categories: tuple[SpreadFigures, ...]
    mean: SpreadFigures = Field(description="spread of the runs' means, not mean of the categories' spreads")
    forgetting: dict[str, Spread | None] | None = Field(description="FM, as routed")
    backward_transfer: dict[str, Spread | None] | None = Field(description="BWT, as routed")


def summarise(runs: Sequence[Evaluation]) -> Summary:
    """Mean and sample standard deviation of every figure.

    Raises:
        ConfigurationError: fewer than two runs, one given twice, or runs that were not measured alike.
    """
    _check(runs)
    first = runs[0]
    names = [each.category for each in first.categories]
    return Summary(
        checkpoints=tuple(run.checkpoint for run in runs),
        seeds=tuple(tuple(each.seed for each in run.categories) for run in runs),
        protocol=first.protocol,
        categories=tuple(
            _spread_figures(name, [each for run in runs for each in run.categories if each.category == name])
            for name in names
        ),
        mean=_spread_figures("mean", runs),
        forgetting=_over_sequences(runs, lambda figure: figure.forgetting),
        backward_transfer=_over_sequences(runs, lambda figure: figure.backward_transfer),
    )


def _spread_figures(name: str, rows: Sequence[CategoryFigures | Evaluation]) -> SpreadFigures:
    accuracy = _spread([row.routing_accuracy for row in rows])
    assert accuracy is not None  # always measured
    return SpreadFigures(
        name=name,
        routing_accuracy=accuracy,
        routed={metric: _spread([getattr(row.routed, metric) for row in rows]) for metric in METRICS},
        named={metric: _spread([getattr(row.named, metric) for row in rows]) for metric in METRICS},
    )


def _over_sequences(
    runs: Sequence[Evaluation], read: Callable[[OverSequence], float | None]
) -> dict[str, Spread | None] | None:
    sequences = [run.continual for run in runs if run.continual is not None]
    if len(sequences) < len(runs):
        return None
    return {name: _spread([read(each.routed[name]) for each in sequences]) for name in sequences[0].routed}


def _spread(values: Sequence[float | None]) -> Spread | None:
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return None
    return Spread(mean=fmean(defined), deviation=stdev(defined), runs=tuple(defined))


def _check(runs: Sequence[Evaluation]) -> None:
    if len(runs) < 2:
        raise ConfigurationError(f"{len(runs)} evaluation has no spread; give those of two or more checkpoints.")
    digests = [run.digest for run in runs]
    for number, run in enumerate(runs):
        if run.digest in digests[:number]:
            raise ConfigurationError(
                f"{run.checkpoint} (digest {run.digest[:12]}…) is given twice; each evaluation must be of a checkpoint "
                "of its own, such as one a seed."
            )
        expected, found = list(_measured(runs[0])), list(_measured(run))
        if expected != found:
            different = next((pair for pair in zip(expected, found, strict=False) if pair[0] != pair[1]), None)
            raise ConfigurationError(
                f"{run.checkpoint} and {runs[0].checkpoint} were not measured alike: "
                + (f"{different[1]} against {different[0]}" if different else "other categories")
                + "; evaluate both on the same data."
            )


def _measured(run: Evaluation) -> Iterator[str]:
    """What must be the same in all runs, in words."""
    yield f"maps at {run.protocol.evaluation_side} pixels, false-positive rate up to {run.protocol.fpr_limit}"
    for each in run.categories:
        yield f"{each.category} on {each.good} good and {each.defective} defective images, {each.masked} with mask"
