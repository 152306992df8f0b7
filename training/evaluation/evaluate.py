"""Evaluate a checkpoint on test images, each scored as routed and with its true product named.

Nothing is tuned here: thresholds are the checkpoint's, smoothing and scores those of prediction. The backbone runs once
per image. Of each image only its patch map (a few kB) is kept; maps at the evaluation size exist for one category at a
time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean

import numpy as np

from moleflow.model.detector import Detector
from moleflow.model.files.file_names import as_line
from moleflow.model.names import find_named
from moleflow.model.runtime.threads import helper_threads
from moleflow.model.verdict.results import Prediction
from moleflow.training.data.datasets import Category, Sample, read_image
from moleflow.training.embeddings.extraction import ahead
from moleflow.training.evaluation.aupro import FPR_LIMIT
from moleflow.training.evaluation.curves import Curve, operating_points
from moleflow.training.evaluation.figures import category_figures, labelled_pixels
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, ImagePixels, PixelScores
from moleflow.training.evaluation.records import (
    CategoryFigures,
    Confusion,
    Evaluation,
    Figures,
    Protocol,
    ServiceAnswers,
    mean_of,
)
from moleflow.training.progress import Reporter

__all__ = ["Curves", "Measured", "Outcome", "evaluate", "measure"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test image, as routed and with its true product named; the same object if both are the same."""

    sample: Sample
    routed: Prediction
    named: Prediction


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves for a report; ``None`` if there is nothing to measure."""

    image_roc: Curve | None
    pixel_roc: Curve | None
    pro: Curve | None


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one category, and what a report shows of it (as routed)."""

    figures: CategoryFigures
    curves: Curves
    outcomes: tuple[Outcome, ...]


def evaluate(
    detector: Detector,
    categories: Sequence[Category],
    *,
    batch_size: int = 8,
    reporter: Reporter | None = None,
    keep: Callable[[Evaluation, list[Measured]], None] = lambda evaluation, measured: None,
) -> tuple[Evaluation, list[Measured]]:
    """Score every test image of ``categories`` and compute all figures.

    ``keep`` is called after each category with the results so far, so that an error in a later one does not lose them.

    Raises:
        UnknownTaskError: a category was not learned.
        DatasetError: an image or mask cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from moleflow.training.data.selection import load_test_categories
        >>> categories = load_test_categories(Path("tested"), ["bolt", "nut"])
        >>> evaluation, measured = evaluate(Detector.load("factory.safetensors"), categories)
        >>> [(each.category, each.good, each.defective) for each in evaluation.categories]
        [('bolt', 4, 3), ('nut', 4, 3)]
        >>> 0 <= evaluation.routed.image_auroc <= 1 and 0 <= evaluation.routing_accuracy <= 1
        True
    """
    reporter = reporter or Reporter()
    measured: list[Measured] = []
    for category in categories:
        with reporter.phase(category.name, len(category.test)) as phase:
            outcomes = list(_outcomes(detector, category, batch_size, phase.advance))
        _tell_misfits(category.name, outcomes, reporter)
        measured.append(measure(category.name, outcomes, seed=find_named(category.name, detector.tasks).seed))
        evaluation = _summed_up(detector, categories, measured)
        keep(evaluation, measured)
    return evaluation, measured


def _summed_up(detector: Detector, categories: Sequence[Category], measured: Sequence[Measured]) -> Evaluation:
    """The evaluation of the ``measured`` ones, the first of ``categories``."""
    figures = [each.figures for each in measured]
    return Evaluation(
        created=datetime.now(UTC),
        checkpoint=detector.checkpoint.name,
        digest=detector.checkpoint.digest,
        products=tuple(task.name for task in detector.tasks),
        precision=detector.precision,
        protocol=Protocol(evaluation_side=EVALUATION_SIDE, fpr_limit=FPR_LIMIT),
        categories=tuple(figures),
        routing_accuracy=fmean(each.routing_accuracy for each in figures),
        routed=mean_of([each.routed for each in figures]),
        named=mean_of([each.named for each in figures]),
        service=mean_of([each.service for each in figures]),
        confusion=_confusion(measured, [task.name for task in detector.tasks]),
        warnings=tuple(warning for each in categories for warning in each.warnings_on("testing")),
        unmeasured=tuple(each.name for each in categories[len(measured) :]),
    )


def measure(name: str, outcomes: Sequence[Outcome], *, seed: int) -> Measured:
    """All figures of one category, from the results for its images."""
    samples = [outcome.sample for outcome in outcomes]
    routed, named = [outcome.routed for outcome in outcomes], [outcome.named for outcome in outcomes]
    pixels = _pixel_scores(outcomes)
    as_routed = _figures(samples, routed, pixels[0])
    same = all(outcome.routed is outcome.named for outcome in outcomes)
    good = sorted(each.score for each, sample in zip(routed, samples, strict=True) if not sample.is_anomalous)
    bad = sorted(each.score for each, sample in zip(routed, samples, strict=True) if sample.is_anomalous)
    return Measured(
        figures=CategoryFigures(
            category=name,
            good=len(good),
            defective=len(bad),
            masked=sum(bool(sample.masks) for sample in samples),
            seed=seed,
            threshold=named[0].threshold,
            routing_accuracy=fmean(each.task.name == name for each in routed),
            routed=as_routed,
            named=as_routed if same else _figures(samples, named, pixels[1]),
            service=_service_answers(name, samples, routed),
        ),
        curves=Curves(
            image_roc=operating_points(np.array(good), [np.array(bad)] if bad else []),
            pixel_roc=pixels[0].roc(),
            pro=pixels[0].pro(),
        ),
        outcomes=tuple(outcomes),
    )


def _tell_misfits(name: str, outcomes: Sequence[Outcome], reporter: Reporter) -> None:
    """Report images whose value range does not match that of their product."""
    odd = [outcome for outcome in outcomes if outcome.named.warnings]
    if odd:
        reporter.line(
            f"{name}: {len(odd)} of {len(outcomes)} test images do not fit what was learned; "
            f"{as_line(odd[0].sample.path)}: {odd[0].named.warnings[0]}"
        )


def _outcomes(
    detector: Detector, category: Category, batch_size: int, on_progress: Callable[[int], None]
) -> Iterator[Outcome]:
    """Score the test images in order; the next batch is decoded while this one is scored."""

    def read(sample: Sample) -> np.ndarray:
        # Resized at once: a batch of large images would take gigabytes.
        return detector.preprocessing.resize(read_image(sample.path, detector.preprocessing.image_size))

    batches = [category.test[start : start + batch_size] for start in range(0, len(category.test), batch_size)]
    with ThreadPoolExecutor(helper_threads()) as pool:
        for batch, images in zip(batches, ahead(pool, batches, read), strict=True):
            both = detector.predict_both(images, [category.name] * len(batch))
            for sample, (routed, named) in zip(batch, both, strict=True):
                yield Outcome(sample, routed, named)
            on_progress(len(batch))


def _pixel_scores(outcomes: Sequence[Outcome]) -> tuple[PixelScores, PixelScores]:
    """All labelled pixels as routed and as named; shared arrays are kept once."""
    routed, named = PixelScores(), PixelScores()
    if not any(outcome.sample.masks for outcome in outcomes):
        return routed, named
    for outcome in outcomes:
        pixels = _pixels(outcome.sample, outcome.routed)
        routed.append(pixels)
        named.append(pixels if outcome.named is outcome.routed else _pixels(outcome.sample, outcome.named))
    return routed, named


def _pixels(sample: Sample, prediction: Prediction) -> ImagePixels | None:
    return labelled_pixels(sample, prediction.pixel_map(EVALUATION_SIDE, EVALUATION_SIDE))


def _figures(samples: Sequence[Sample], found: Sequence[Prediction], pixels: PixelScores) -> Figures:
    return category_figures(samples, [each.score for each in found], pixels, [each.is_anomalous for each in found])


def _service_answers(name: str, samples: Sequence[Sample], routed: Sequence[Prediction]) -> ServiceAnswers:
    refused: dict[bool, list[bool]] = {True: [], False: []}
    for sample, each in zip(samples, routed, strict=True):
        refused[sample.is_anomalous].append(each.is_unknown)
    return ServiceAnswers(
        good_refused=fmean(refused[False]) if refused[False] else None,
        defective_refused=fmean(refused[True]) if refused[True] else None,
        sent_elsewhere=fmean(not each.is_unknown and each.task.name != name for each in routed),
    )


def _confusion(measured: Sequence[Measured], products: Sequence[str]) -> Confusion:
    chosen = {each.figures.category: [one.routed.task.name for one in each.outcomes] for each in measured}
    return Confusion(
        categories=tuple(chosen),
        products=tuple(products),
        counts=tuple(tuple(row.count(product) for product in products) for row in chosen.values()),
    )
